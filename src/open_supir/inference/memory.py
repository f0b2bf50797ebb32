"""Memory: what fits, and what to give up, in order, where something did not.

The order is fixed: what does not change the result comes before what does, but for parking parts
off the device, which is slowest and comes last.
"""

import dataclasses
import os
from dataclasses import dataclass, replace

import torch

from open_supir.inference.options import RestoreOptions
from open_supir.networks import AutoencoderKL, ControlledUNet

VAE_TILE = 1024  # pixels
LEAST_TILE = 16  # latent pixels
# Values held at once, counted for SDXL-shaped networks: 1.5 GiB a megapixel for its autoencoder in
# bfloat16 (128 channels), 0.6 GiB a megapixel for UNet and adaptor with two guidance halves (320).
VAE_VALUES = 6.0  # a pixel and channel of the finest level
UNET_VALUES = 31.0  # a latent pixel, channel of the finest level, and half
SHARE = {"cpu": 0.5, "cuda": 0.8}  # of all memory that the estimate may use


@dataclass(frozen=True)
class Rung:
    """One step down: what was given up, and whether the result is another one for it."""

    name: str
    is_exact: bool


def step_down(
    options: RestoreOptions, *, native_tile: int, has_device: bool = True
) -> tuple[RestoreOptions, Rung] | None:
    """Return options that need less memory, and what they gave up; None where nothing is left.

    Args:
        options: What did not fit.
        native_tile: Latent side that the networks were trained at: the first tile to try.
        has_device: Whether parts can be parked off the device at all.
    """
    settings = options.settings
    if settings.tile is not None and settings.tile_batch > 1:
        return _sampled(options, tile_batch=1), Rung("tile_batch=1", True)
    if not settings.sequential_cfg:
        return _sampled(options, sequential_cfg=True), Rung("sequential_cfg=true", True)
    if options.vae_tile is None:
        return replace(options, vae_tile=VAE_TILE), Rung(f"vae_tile={VAE_TILE}", True)
    if settings.tile is None:
        tile = max(LEAST_TILE, native_tile // 4 * 4)
        return _sampled(options, tile=tile, tile_batch=1), Rung(f"tile={tile}", False)
    if settings.tile >= 2 * LEAST_TILE:
        tile = settings.tile // 2 // 4 * 4
        return _sampled(options, tile=tile), Rung(f"tile={tile}", False)
    if options.vae_tile > 256:
        return replace(options, vae_tile=256), Rung("vae_tile=256", True)
    if has_device and not options.offload:
        return replace(options, offload=True), Rung("offload=true", True)
    return None


def fit(
    options: RestoreOptions,
    *,
    size: tuple[int, int],
    vae: AutoencoderKL,
    network: ControlledUNet,
    native_tile: int,
    device: torch.device,
) -> tuple[RestoreOptions, list[Rung]]:
    """Return options that should fit, by an estimate from sizes and the device's whole memory.

    What other programs use is not asked, so that one machine always decides alike.
    """
    budget = _memory(device) * SHARE["cpu" if device.type == "cpu" else "cuda"]
    given_up: list[Rung] = []
    pixels, item = size[0] * size[1], vae.decoder.conv_in.weight.element_size()
    vae_bytes = pixels * VAE_VALUES * vae.decoder.conv_out.weight.shape[1] * item
    if options.vae_tile is None and vae_bytes > budget:
        options = replace(options, vae_tile=VAE_TILE)
        given_up.append(Rung(f"vae_tile={VAE_TILE}", True))
    unet = network.unet
    per_latent = UNET_VALUES * unet.model_channels * next(unet.parameters()).element_size()
    latent_pixels = pixels // vae.downsampling**2
    if options.settings.tile is None and latent_pixels * per_latent * 2 > budget:
        if latent_pixels * per_latent <= budget and not options.settings.sequential_cfg:
            options = _sampled(options, sequential_cfg=True)
            given_up.append(Rung("sequential_cfg=true", True))
        elif latent_pixels * per_latent > budget:
            tile = max(LEAST_TILE, native_tile // 4 * 4)
            options = _sampled(options, tile=tile)
            given_up.append(Rung(f"tile={tile}", False))
    return options, given_up


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether `error` is a device or the machine running out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU


def _sampled(options: RestoreOptions, **changes: int | bool) -> RestoreOptions:
    return replace(options, settings=dataclasses.replace(options.settings, **changes))  # type: ignore[arg-type]


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
