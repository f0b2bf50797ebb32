"""Training: the two stages of SUPIR, the tiny prior, and what keeps a run alive and visible."""

from src.training.prior_module import PriorModule, VAEModule
from src.training.robust_encoder_module import RobustEncoderModule
from src.training.supir_module import SupirModule

__all__ = ["PriorModule", "RobustEncoderModule", "SupirModule", "VAEModule"]
