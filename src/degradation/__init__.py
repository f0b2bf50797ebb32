"""Degradation of clean images for training and for benchmarks."""

from .config import BlurConfig, DegradationConfig, StageConfig
from .params import DegradationParams
from .pipeline import DegradationPipeline

__all__ = [
    "BlurConfig",
    "DegradationConfig",
    "DegradationParams",
    "DegradationPipeline",
    "StageConfig",
]
