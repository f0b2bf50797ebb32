"""Restoration: the settings of a sampling run, and the one sampling path that every caller takes.

B batch, h w latent size. Latents are scaled and float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from open_supir.diffusion.denoiser import Network
from open_supir.diffusion.guidance import (
    CondT,
    DenoiseNetwork,
    IntervalScale,
    LinearScale,
    Scale,
    controlled_denoise,
    restoration_guidance,
)
from open_supir.diffusion.samplers import (
    Denoise,
    OnStep,
    Randn,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
)
from open_supir.diffusion.schedule import SIGMA_MAX, exponential_sigmas, karras_sigmas, table_sigmas
from open_supir.diffusion.tiling import WindowedDenoise, spread_windows, tile_weights, tiled

Sampler = Literal["euler", "heun", "dpmpp_2m"]
Grid = Literal["table", "karras", "exponential"]
Center = Literal["clean", "clean_sampled", "lq"]

_GRIDS = {"table": table_sigmas, "karras": karras_sigmas, "exponential": exponential_sigmas}


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    """How to sample.

    Attributes:
        num_steps: Steps, 1..1000.
        sampler: euler and heun add noise back by `s_churn`; dpmpp_2m by `eta`.
        grid: Where the noise levels lie.
        cfg_scale: Strength of classifier-free guidance as sigma goes to 0; 1 is none.
        cfg_scale_start: Its strength at the highest sigma; None keeps it constant.
        cfg_interval: Lowest and highest sigma with guidance; None guides everywhere.
        control_scale: Strength of the control connectors as sigma goes to 0; 0 leaves the prior
            alone.
        control_scale_start: Its strength at the highest sigma; None keeps it constant.
        tau: Exponent of restoration guidance; larger is weaker. None switches it off.
        center: What restoration guidance pulls to: the cleaned image encoded anew, by the mean of
            its posterior ("clean") or by a draw from it ("clean_sampled", as released), or the
            latent of the degraded image itself ("lq", as in the paper's Algorithm 1).
        s_churn, s_tmin, s_tmax: Amount of churn, and the sigmas between which it happens.
        s_noise: Factor on the standard deviation of every noise added.
        churn_beyond_table: Let churn raise sigma above the table's top, as released, although the
            network then sees the top level's index and scaling.
        eta: 0 is dpmpp_2m's ODE, 1 its SDE.
        tile: Side of a tile in latent pixels, a multiple of 4; None denoises the whole at once.
        overlap: Least share of a tile that its neighbour covers too.
        tile_batch: Tiles evaluated together.
        sequential_cfg: Evaluate the halves of classifier-free guidance one after the other, to save
            memory.

    Raises:
        ValueError: A value is out of its range; the message names it.
    """

    num_steps: int = 50
    sampler: Sampler = "euler"
    grid: Grid = "table"
    cfg_scale: float = 4.0
    cfg_scale_start: float | None = None
    cfg_interval: tuple[float, float] | None = None
    control_scale: float = 1.0
    control_scale_start: float | None = None
    tau: float | None = None
    center: Center = "clean"
    s_churn: float = 5.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.01
    churn_beyond_table: bool = False
    eta: float = 1.0
    tile: int | None = None
    overlap: float = 0.25
    tile_batch: int = 4
    sequential_cfg: bool = False

    def __post_init__(self) -> None:
        words = {"sampler": Sampler, "grid": Grid, "center": Center}
        for name, known in words.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(get_args(known))}"
                )
        for name, value in vars(self).items():
            if isinstance(value, str) and name not in words:
                raise ValueError(f"{name} must be a number, got {value!r}")
            if isinstance(value, float) and name in ("num_steps", "tile", "tile_batch"):
                raise ValueError(f"{name} must be a whole number, got {value}")
        if not 1 <= self.num_steps <= 1000:
            raise ValueError(f"num_steps must be in 1..1000, got {self.num_steps}")
        for name in ("cfg_scale", "cfg_scale_start", "control_scale", "control_scale_start", "tau"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number >= 0 or null, got {value}")
        for name in ("s_churn", "s_noise", "s_tmin", "s_tmax", "eta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.cfg_interval is not None:
            low, high = self.cfg_interval
            if not 0 <= low <= high:
                raise ValueError(
                    f"cfg_interval must be 0 <= low <= high, got {tuple(self.cfg_interval)}"
                )
        if self.tile is not None and (self.tile < 8 or self.tile % 4):
            raise ValueError(
                f"tile must be a multiple of 4, at least 8, in latent pixels, got {self.tile}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.tile_batch < 1:
            raise ValueError(f"tile_batch must be at least 1, got {self.tile_batch}")

    @property
    def needs_clean_center(self) -> bool:
        """Whether restoration guidance is on and asks for the latent of the cleaned image."""
        return self.tau is not None and self.center != "lq"

    @property
    def cfg(self) -> float | Scale:
        """Guidance strength as a number or a function of sigma."""
        cfg = _linear(self.cfg_scale_start, self.cfg_scale)
        return cfg if self.cfg_interval is None else IntervalScale(cfg, *self.cfg_interval)

    @property
    def control(self) -> float | Scale:
        """Control strength as a number or a function of sigma."""
        return _linear(self.control_scale_start, self.control_scale)

    def sigmas(self) -> list[float]:
        """Return the noise levels, `num_steps` descending and 0."""
        return _GRIDS[self.grid](self.num_steps)


@torch.no_grad()
def restore_latent(
    network: Network,
    denoiser: DenoiseNetwork,
    cond: CondT,
    uncond: CondT | None,
    z_lq: Tensor,
    *,
    z_center: Tensor | None = None,
    settings: RestoreSettings,
    randn: Randn,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a restored latent (B, C, h, w), float32, from pure noise under the control of `z_lq`.

    Args:
        network: Called as network(x, t, cond, z_lq, control_scale).
        denoiser: Turns its output into an estimate of the clean latent.
        cond: Named tuple of tensors (B, ...).
        uncond: The same of the negative prompt; None only without guidance.
        z_lq: (B, C, h, w) latent of the degraded image.
        z_center: (B, C, h, w) latent of the cleaned image, for restoration guidance with
            center="clean".
        settings: How to sample.
        randn: Source of all noise: called for the start, then for each step that adds some.
        on_step: Called after each step.

    Raises:
        ValueError: Restoration guidance needs a `z_center`, and there is none.
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
        denoise = restoration_guidance(denoise, z_center.float(), tau=settings.tau)
    sigmas = settings.sigmas()
    x = randn(z_lq) * math.sqrt(
        1 + sigmas[0] ** 2
    )  # the table's marginal: signal of variance 1, and noise
    return _sample(denoise, x, sigmas, settings=settings, randn=randn, on_step=on_step)


@torch.no_grad()
def generate_latent(
    network: Network,
    denoiser: DenoiseNetwork,
    cond: CondT,
    uncond: CondT | None,
    z: Tensor,
    *,
    strength: float = 1.0,
    settings: RestoreSettings,
    randn: Randn,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample from the prior alone: text-to-image, or image-to-image from `z`.

    Image-to-image adds noise to `z` and takes the last steps only (SDEdit, arXiv:2108.01073).

    Args:
        z: (B, C, h, w) latent to start from; only its shape and device matter at strength 1.
        strength: Share of the steps that are taken, in [0, 1]. 1 starts from pure noise, 0 returns
            `z`.
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
    return _sample(denoise, x, sigmas, settings=settings, randn=randn, on_step=on_step)


def image_noise(seeds: Sequence[int]) -> Randn:
    """Return a source of noise with one CPU generator an image: batch and device change nothing.

    Args:
        seeds: One for each row of the tensors that the source will be asked for.
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
    settings: RestoreSettings,
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


def _sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    settings: RestoreSettings,
    randn: Randn,
    on_step: OnStep | None,
) -> Tensor:
    if settings.sampler == "dpmpp_2m":
        return sample_dpmpp_2m(
            denoise,
            x,
            sigmas,
            eta=settings.eta,
            s_noise=settings.s_noise,
            randn=randn,
            on_step=on_step,
        )
    sample = {"euler": sample_euler, "heun": sample_heun}[settings.sampler]
    return sample(
        denoise,
        x,
        sigmas,
        s_churn=settings.s_churn,
        s_noise=settings.s_noise,
        s_tmin=settings.s_tmin,
        s_tmax=settings.s_tmax,
        sigma_cap=math.inf if settings.churn_beyond_table else SIGMA_MAX,
        randn=randn,
        on_step=on_step,
    )


def _linear(start: float | None, end: float) -> float | Scale:
    return end if start is None else LinearScale(start, end)
