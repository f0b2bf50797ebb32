"""The text-to-image prior alone, for making negative samples; images are in [0, 1]."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from open_supir.base.devices import find_device
from open_supir.base.dtypes import parse_dtype
from open_supir.checkpoints.load import Load, load_all
from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.inference.image_to_image import image_to_image
from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.networks.build import build_on_meta


@dataclass(frozen=True, kw_only=True)
class Prior:
    """UNet, autoencoder and text towers of an SDXL-like model, with its sampler settings."""

    unet: UNet
    vae: AutoencoderKL
    conditioner: Conditioner
    denoiser: Denoiser
    settings: SamplerSettings
    size_condition: tuple[int, int] | None = None

    def image_to_image(self, image: Tensor, *, prompt: str, strength: float, seed: int) -> Tensor:
        """Sample (1, 3, H, W) from the prior, starting from an image of this shape."""
        return image_to_image(
            self.unet,
            self.denoiser,
            self.conditioner,
            self.vae,
            image,
            [prompt],
            [""],
            strength=strength,
            settings=self.settings,
            seeds=[seed],
            size_condition=self.size_condition,
        )


def load_prior(
    path: str,
    *,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    conditioner: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    settings: Mapping[str, Any],
    size_condition: tuple[int, int] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Prior:
    """Build the networks and load an SDXL file, or one in its layout.

    Args:
        path: The file, or a diffusers folder.
        unet, vae, conditioner: How to build them, as in a checkpoint's recipe.
        denoiser, settings: Arguments of Denoiser and SamplerSettings; `_target_` is ignored.
        size_condition: (h, w) given to the conditioner; None is the image's size.
        device: See `find_device`.
        dtype: Dtype of UNet and text towers; the autoencoder is float32.

    Raises:
        FileNotFoundError, KeyError, ValueError: The file is missing or wrong; the message names it.
    """
    precision = parse_dtype(dtype)
    place = find_device(device)
    network: UNet = build_on_meta(unet)
    coder: AutoencoderKL = build_on_meta(vae)
    towers: Conditioner = build_on_meta(conditioner)
    parts = {"unet": network, "clip_l": towers.clip_l, "clip_g": towers.clip_g}
    load_all(
        [
            Load(path=path, parts=parts, dtype=precision, key="negatives.prior.path"),
            Load(path=path, parts={"vae": coder}, dtype=torch.float32, key="negatives.prior.path"),
        ]
    )
    for module in (network, coder, towers):
        module.to(place).requires_grad_(False).eval()
    return Prior(
        unet=network,
        vae=coder,
        conditioner=towers,
        denoiser=Denoiser(**_arguments(denoiser)),
        settings=SamplerSettings(**_arguments(settings)),
        size_condition=None if size_condition is None else tuple(size_condition),  # type: ignore[arg-type]
    )


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != "_target_"}
