"""Floating point operations of a training step, counted on networks without memory.

The multiplications and additions of matrix products, convolutions and attention count (two
operations each), once per step: recomputation due to activation checkpointing is left out, as is
usual for model FLOPs utilisation (MFU). So are text towers, degradation and element-wise
operations, which are 2 % at SDXL's size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import measure_flops

from open_supir.networks import AutoencoderKL, ControlledUNet
from open_supir.networks.build import build_on_meta
from open_supir.networks.conditioner import Conditioning


class StepFlops(NamedTuple):
    """Operations of one image's training step."""

    trained: float  # forward and backward passes of the networks with a graph
    frozen: float  # encoder passes without a graph


def step_flops(architecture: Mapping[str, Any], *, stage: str, crop: int) -> StepFlops | None:
    """Count one image's training step.

    Args:
        architecture: What `build` accepts, by part, as in a checkpoint's recipe.
        stage: supir or robust_encoder; others return None.
    """
    if stage not in ("supir", "robust_encoder"):
        return None
    vae: AutoencoderKL = build_on_meta(architecture["vae"]).requires_grad_(False)
    image = torch.empty(1, 3, crop, crop, device="meta")
    z = vae.encode(image)
    encode = measure_flops(vae, lambda: vae.encode(image))
    if stage == "robust_encoder":
        vae.encoder.requires_grad_(True)
        trained = measure_flops(vae, lambda: vae.decode(vae.encode(image)), torch.sum)
        return StepFlops(trained, encode)
    parts = {part: build_on_meta(architecture[part]) for part in ("unet", "control", "connector")}
    network = ControlledUNet(**parts)
    cond = meta_conditioning(architecture["unet"], rows=1)
    t = torch.zeros(1, device="meta")
    trained = measure_flops(network, lambda: network(z, t, cond, z), torch.sum)
    return StepFlops(trained, 2 * encode)


def meta_conditioning(unet: Mapping[str, Any], *, rows: int, tokens: int = 77) -> Conditioning:
    """Return conditioning of the UNet's widths, without memory."""
    with torch.device("meta"):
        context = torch.empty(rows, tokens, unet["context_dim"])
        return Conditioning(context, torch.empty(rows, unet["vector_dim"]))
