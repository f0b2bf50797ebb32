"""Degradation of clean images for training and for benchmarks."""

from open_supir.degradation.config import BlurConfig, DegradationConfig, StageConfig
from open_supir.degradation.params import DegradationParams
from open_supir.degradation.pipeline import DegradationPipeline

__all__ = [
    "BlurConfig",
    "DegradationConfig",
    "DegradationParams",
    "DegradationPipeline",
    "StageConfig",
]
