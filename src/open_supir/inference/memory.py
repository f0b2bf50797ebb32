"""Memory: estimate what fits, and reduce the options step by step when memory runs out.

The order is fixed: steps that keep the result exact come before those that change it, except for
offloading parts from the device, which is slowest and comes last.
"""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch

from open_supir.base.devices import total_memory as _memory
from open_supir.inference.options import RestoreOptions
from open_supir.networks import AutoencoderKL, ControlledUNet
from open_supir.networks.vae import MAX_VALUES

VAE_TILE = 1024  # pixels
LEAST_TILE = 16  # latent pixels
# Values held at once, counted for SDXL-shaped networks: in bfloat16, the autoencoder (128 channels)
# takes 1.5 GiB per megapixel, UNet and adaptor (320) with both guidance halves 0.6 GiB.
VAE_VALUES = 6.0  # per pixel and channel of the finest level
UNET_VALUES = 31.0  # per latent pixel, channel of the finest level, and guidance half
# Values of the UNet's largest tensor, counted like UNET_VALUES: hidden features of SDXL's second
# level. The autoencoder's largest is what its last upsampling gives.
UNET_WIDEST = 4
SHARE = {"cpu": 0.5, "cuda": 0.8}  # share of the total memory that the estimate may use


@dataclass(frozen=True)
class Rung:
    """One reduction: the changed option, and whether the result stays exact."""

    name: str
    is_exact: bool


def step_down(
    options: RestoreOptions,
    *,
    native_tile: int,
    has_device: bool = True,
    in_autoencoder: bool = False,
) -> tuple[RestoreOptions, Rung] | None:
    """Return options that need less memory, and the reduction made; None if none is left.

    Args:
        native_tile: Latent side that the networks were trained at; the first tile size to try.
        has_device: Whether parts can be offloaded at all (not on a CPU).
        in_autoencoder: Whether memory ran out there, where only its own reductions help.
    """
    sampler = options.sampler
    if in_autoencoder and options.vae_tile is None:
        return replace(options, vae_tile=VAE_TILE), Rung(f"vae_tile={VAE_TILE}", True)
    if in_autoencoder and options.vae_tile is not None and options.vae_tile > 256:
        return replace(options, vae_tile=256), Rung("vae_tile=256", True)
    if sampler.tile is not None and sampler.tile_batch > 1:
        return _sampled(options, tile_batch=1), Rung("tile_batch=1", True)
    if not sampler.sequential_cfg:
        return _sampled(options, sequential_cfg=True), Rung("sequential_cfg=true", True)
    if options.vae_tile is None:
        return replace(options, vae_tile=VAE_TILE), Rung(f"vae_tile={VAE_TILE}", True)
    if sampler.tile is None:
        tile = max(LEAST_TILE, native_tile // 4 * 4)
        return _sampled(options, tile=tile, tile_batch=1), Rung(f"tile={tile}", False)
    if sampler.tile >= 2 * LEAST_TILE:
        tile = sampler.tile // 2 // 4 * 4
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
    weights: int = 0,
    sampling_weights: int | None = None,
) -> tuple[RestoreOptions, list[Rung]]:
    """Return options that should fit, estimated from sizes and the device's total memory.

    Memory in use by other programs is ignored, so that a machine always decides the same way.
    No tensor of whole images has more than `MAX_VALUES` values.

    Args:
        size: Working size (h, w) in pixels.
        weights: Bytes of the weights on the device while the autoencoder works.
        sampling_weights: The same while the network does; None is `weights`.
    """
    usable = _memory(device) * SHARE["cpu" if device.type == "cpu" else "cuda"]
    budget = usable - weights
    given_up: list[Rung] = []
    pixels, item = size[0] * size[1], vae.decoder.conv_in.weight.element_size()
    vae_bytes = pixels * VAE_VALUES * vae.decoder.conv_out.weight.shape[1] * item
    is_vast = pixels * widest_in(vae) > MAX_VALUES
    if options.vae_tile is None and (vae_bytes > budget or is_vast):
        options = replace(options, vae_tile=VAE_TILE)
        given_up.append(Rung(f"vae_tile={VAE_TILE}", True))
    unet = network.unet
    per_latent = UNET_VALUES * unet.model_channels * next(unet.parameters()).element_size()
    latent_pixels = pixels // vae.downsampling**2
    largest = latent_pixels * UNET_WIDEST * unet.model_channels
    budget = usable - (weights if sampling_weights is None else sampling_weights)
    half = max(
        latent_pixels * per_latent / max(budget, 1), largest / MAX_VALUES
    )  # of what there is
    if options.sampler.tile is None and 2 * half > 1:
        if half <= 1 and not options.sampler.sequential_cfg:
            options = _sampled(options, sequential_cfg=True)
            given_up.append(Rung("sequential_cfg=true", True))
        elif half > 1:
            tile = max(LEAST_TILE, native_tile // 4 * 4)
            options = _sampled(options, tile=tile)
            given_up.append(Rung(f"tile={tile}", False))
    return options, given_up


def widest_in(vae: AutoencoderKL) -> int:
    """Return the autoencoder's largest number of channels at full resolution."""
    finest: Any = vae.decoder.up[0]
    return finest.block[0].conv1.in_channels


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that the device or the machine ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # of torch's CPU, and of CUDA for pinned memory
    words = ("can't allocate memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _sampled(options: RestoreOptions, **changes: int | bool) -> RestoreOptions:
    return replace(options, sampler=dataclasses.replace(options.sampler, **changes))  # type: ignore[arg-type]
