"""SUPIR as a pipeline of diffusers (extra `diffusers`)."""

from open_supir.diffusers.pipeline import ModelMixin, SupirModel, SupirPipeline

# diffusers' loader looks for the base class of a component beside the component
__all__ = ["ModelMixin", "SupirModel", "SupirPipeline"]
