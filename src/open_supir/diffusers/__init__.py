"""SUPIR as a pipeline of diffusers (extra `diffusers`)."""

from open_supir.diffusers.pipeline import SupirModel, SupirPipeline

__all__ = ["SupirModel", "SupirPipeline"]
