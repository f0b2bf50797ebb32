"""Restoration: the one sampling path that every caller takes.

B batch, h w latent size. Latents are scaled and float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from open_supir.diffusion.denoiser import Network
from open_supir.diffusion.guidance import (
    CondT,
    DenoiseNetwork,
    controlled_denoise,
    protected,
    restoration_guidance,
)
from open_supir.diffusion.sampler_settings import SamplerSettings
from open_supir.diffusion.samplers import Denoise, OnStep, Randn
from open_supir.diffusion.tiling import WindowedDenoise, spread_windows, tile_weights, tiled


@torch.no_grad()
def restore_latent(
    network: Network,
    denoiser: DenoiseNetwork,
    cond: CondT,
    uncond: CondT | None,
    z_lq: Tensor,
    *,
    z_center: Tensor | None = None,
    z_keep: Tensor | None = None,
    mask: Tensor | None = None,
    settings: SamplerSettings,
    randn: Randn,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a restored latent (B, C, h, w), float32, controlled by `z_lq`.

    Args:
        network: Called as network(x, t, cond, z_lq, control_scale).
        denoiser: Turns its output into an estimate of the clean latent.
        cond: Named tuple of tensors (B, ...).
        uncond: The same for the negative prompt; may be None without guidance.
        z_lq: (B, C, h, w) latent of the degraded image.
        z_center: (B, C, h, w) latent of the cleaned image, for restoration guidance with
            center="clean".
        z_keep, mask: (B, C, h, w) latent that stays where the mask (B, 1, h, w) is 0; where it is
            1, everything is restored.
        randn: Source of all noise: called for the start, then for each step that adds noise.

    Raises:
        ValueError: Restoration guidance needs a `z_center`, but got none.
    """
    z_lq = z_lq.float()
    denoise = _denoise(
        network, denoiser, cond, uncond, z_lq, settings=settings, size=z_lq.shape[-2:]
    )
    if settings.tau is not None:
        if settings.center == "lq":
            z_center = z_lq
        if z_center is None:
            raise ValueError(
                "tau is set with center=clean, but no z_center was given; pass it, or use center=lq"
            )
        denoise = restoration_guidance(
            denoise, z_center.float(), tau=settings.tau, sigma_stop=settings.tau_stop
        )
    if z_keep is not None and mask is not None:
        denoise = protected(denoise, z_keep.float(), mask)
    sigmas = settings.sigmas()
    x = settings.start(z_lq, sigmas[0], randn)
    return settings.sample(denoise, x, sigmas, randn=randn, on_step=on_step)


@torch.no_grad()
def generate_latent(
    network: Network,
    denoiser: DenoiseNetwork,
    cond: CondT,
    uncond: CondT | None,
    z: Tensor,
    *,
    strength: float = 1.0,
    settings: SamplerSettings,
    randn: Randn,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample from the prior alone: text-to-image, or image-to-image from `z`.

    Image-to-image adds noise to `z` and runs only the last steps (SDEdit, arXiv:2108.01073).

    Args:
        z: (B, C, h, w) latent to start from; only its shape and device matter at strength 1.
        strength: Share of the steps to run, in [0, 1]. 1 starts from pure noise, 0 returns `z`.
        network, denoiser, cond, uncond, settings, randn, on_step: As in `restore_latent`; the
            network gets z_lq=None.

    Raises:
        ValueError: `strength` is not in [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    z = z.float()
    sigmas = settings.sigmas()
    sigmas = sigmas[settings.num_steps - round(settings.num_steps * strength) :]
    if len(sigmas) == 1:
        return z
    denoise = _denoise(network, denoiser, cond, uncond, None, settings=settings, size=z.shape[-2:])
    x = randn(z) * math.sqrt(1 + sigmas[0] ** 2) if strength == 1 else z + randn(z) * sigmas[0]
    return settings.sample(denoise, x, sigmas, randn=randn, on_step=on_step)


def image_noise(seeds: Sequence[int]) -> Randn:
    """Return a source of noise with one CPU generator per image, independent of batch and device.

    Args:
        seeds: One for each row of the tensors to be drawn.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn(like: Tensor) -> Tensor:
        rows = [
            torch.randn(row.shape, generator=g) for row, g in zip(like, generators, strict=True)
        ]
        return torch.stack(rows).to(device=like.device, dtype=like.dtype)

    return randn


def _denoise(
    network: Network,
    denoiser: DenoiseNetwork,
    cond: CondT,
    uncond: CondT | None,
    z_lq: Tensor | None,
    *,
    settings: SamplerSettings,
    size: Sequence[int],
) -> Denoise:
    denoise: WindowedDenoise = controlled_denoise(
        denoiser,
        network,
        cond,
        uncond,
        z_lq,
        cfg=settings.cfg,
        control=settings.control,
        sequential=settings.sequential_cfg,
    )
    if settings.tile is None or max(size) <= settings.tile:
        return denoise
    windows = spread_windows(size[0], size[1], tile=settings.tile, overlap=settings.overlap)
    weights = tile_weights(windows[0].bottom - windows[0].top, windows[0].right - windows[0].left)
    return tiled(denoise, windows, weights, batch_size=settings.tile_batch)
