"""Training: the two stages of SUPIR, the tiny prior, and what keeps a run alive and visible."""

from open_supir.training.prior_module import PriorModule, VAEModule
from open_supir.training.robust_encoder_module import RobustEncoderModule
from open_supir.training.supir_module import SupirModule

__all__ = ["PriorModule", "RobustEncoderModule", "SupirModule", "VAEModule"]
