"""Degradation of clean images for training and for benchmarks."""

from src.degradation.config import BlurConfig, DegradationConfig, StageConfig
from src.degradation.params import DegradationParams
from src.degradation.pipeline import DegradationPipeline

__all__ = [
    "BlurConfig",
    "DegradationConfig",
    "DegradationParams",
    "DegradationPipeline",
    "StageConfig",
]
