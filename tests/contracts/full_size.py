"""SDXL and SUPIR at their released sizes, on the meta device: names and shapes without memory."""

from torch import nn

from open_supir.networks import RobustEncoder
from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture


def full_size_parts() -> dict[str, nn.Module]:
    """Build every part as released: untrimmed adaptor, ZeroSFT with its two cross-attentions."""
    built = {part: build_on_meta(spec) for part, spec in sdxl_architecture().items()}
    conditioner = built.pop("conditioner")
    towers = {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}
    return {**built, "robust_encoder": RobustEncoder(built["vae"]), **towers}
