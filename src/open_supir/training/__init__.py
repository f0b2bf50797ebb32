"""Training: SUPIR's two stages, the tiny prior, and fault tolerance and monitoring of runs."""

from open_supir.training.one_step_module import OneStepModule
from open_supir.training.prior_module import PriorModule, VAEModule
from open_supir.training.robust_encoder_module import RobustEncoderModule
from open_supir.training.supir_module import SupirModule

__all__ = ["OneStepModule", "PriorModule", "RobustEncoderModule", "SupirModule", "VAEModule"]
