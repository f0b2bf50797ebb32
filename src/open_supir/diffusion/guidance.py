"""Guidance: wrappers that make a denoise function from a network or another denoise function.

B batch, h w latent size (image size / 8 for SDXL), k windows evaluated together. Latents are
scaled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from open_supir.diffusion.denoiser import Network
from open_supir.diffusion.samplers import Denoise, Step
from open_supir.diffusion.schedule import SIGMA_MAX
from open_supir.diffusion.tiling import Window, WindowedDenoise

CondT = TypeVar("CondT", bound=tuple[Tensor, ...])
Scale = Callable[[float], float]  # sigma -> strength

# This close to 1, guidance is off: SIGMA_MAX is rounded, so linear scales miss 1 by 1e-5.
UNGUIDED = 1e-4


class DenoiseNetwork(Protocol):
    """What `Denoiser` provides: an estimate of the clean latent by a network."""

    def __call__(
        self,
        network: Network,
        x: Tensor,
        sigma: Tensor,
        cond: tuple[Tensor, ...],
        z_lq: Tensor | None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Return the clean latent (B, C, h, w) estimated from `x` at noise level `sigma` (B,)."""
        ...


@dataclass(frozen=True)
class LinearScale:
    """A strength that is linear in sigma: `start` at `sigma_max`, `end` at 0."""

    start: float
    end: float
    sigma_max: float = SIGMA_MAX

    def __call__(self, sigma: float) -> float:
        """Return the strength at `sigma`, extrapolated beyond `sigma_max`."""
        return self.end + (self.start - self.end) * (sigma / self.sigma_max)


@dataclass(frozen=True)
class IntervalScale:
    """A strength inside an interval of sigma, 1 outside (arXiv:2404.07724)."""

    inside: float | Scale
    low: float
    high: float

    def __call__(self, sigma: float) -> float:
        """Return the strength at `sigma`."""
        return strength(self.inside, sigma) if self.low <= sigma <= self.high else 1.0


def strength(scale: float | Scale, sigma: float) -> float:
    """Return the value of a constant or varying `scale` at `sigma`."""
    return scale(sigma) if callable(scale) else float(scale)


def controlled_denoise(
    denoiser: DenoiseNetwork,
    network: Network,
    cond: CondT,
    uncond: CondT | None,
    z_lq: Tensor | None,
    *,
    cfg: float | Scale = 1.0,
    control: float | Scale = 1.0,
    sequential: bool = False,
) -> WindowedDenoise:
    """Bind network, conditions and latent of the degraded image; apply classifier-free guidance.

    As released, the guidance strength is taken at `sigma_hat`, the control strength at `sigma`.

    Args:
        cond: Named tuple of tensors (B, ...) for the wanted result.
        uncond: The same for the unwanted one; may be None if `cfg` is always 1.
        z_lq: (B, C, h, w) latent of the degraded image; None means plain text-to-image. The network
            gets it once for both halves, with half as many rows as x.
        cfg: Strength w of uncond + w * (cond - uncond). Steps where it is 1 skip the uncond half.
        sequential: Evaluate the two halves one after the other: less memory, same result.

    Returns:
        A denoise function that, given windows, takes a batch of crops and crops `z_lq` likewise.
    """
    joined: dict[tuple, Any] = {}  # the same at every step

    def estimate(x: Tensor, step: Step, conds: Sequence[CondT], z: Tensor | None) -> Tensor:
        copies, batch = len(conds), len(x)
        sigma = torch.full((copies * batch,), step.sigma_hat, device=x.device)
        key = (tuple(map(id, conds)), batch)
        if key not in joined:
            joined[key] = _concatenate([_repeat(c, batch) for c in conds])
        x = _tile_batch(x, copies)
        return denoiser(network, x, sigma, joined[key], z, strength(control, step.sigma))

    def denoise(x: Tensor, step: Step, windows: Sequence[Window] | None = None) -> Tensor:
        z = z_lq
        if z is not None and windows is not None:
            z = torch.cat([window.crop(z) for window in windows])
        cfg_scale = strength(cfg, step.sigma_hat)
        if abs(cfg_scale - 1) < UNGUIDED:
            return estimate(x, step, [cond], z)
        if uncond is None:
            raise ValueError(
                f"guidance of strength {cfg_scale} needs an uncond condition, got None"
            )
        if sequential:
            without, with_ = estimate(x, step, [uncond], z), estimate(x, step, [cond], z)
        else:
            without, with_ = estimate(x, step, [uncond, cond], z).chunk(2)
        return without + cfg_scale * (with_ - without)

    return denoise


def restoration_guidance(
    denoise: Denoise,
    z_center: Tensor,
    *,
    tau: float,
    sigma_max: float = SIGMA_MAX,
    sigma_stop: float | None = 0.05,
) -> Denoise:
    """Pull each estimate toward `z_center`, fully at the highest noise and less as noise falls.

    The pull is (sigma / sigma_max) ** tau, or 0 in a step that ends at or below `sigma_stop`; None
    pulls in every step.
    Source: SUPIR (arXiv:2401.13627), restoration-guided sampling; the stop is the released
    sampler's.

    Args:
        z_center: (B, C, h, w) latent of the cleaned image, or of the degraded one as in the paper.
        tau: Exponent; larger means a weaker pull. 0 would replace every estimate by `z_center`.
        sigma_max: Highest sigma of the schedule in use.

    Raises:
        ValueError: `tau` is negative, or `sigma_max` is not positive.
    """
    if not (tau >= 0 and math.isfinite(tau)):
        raise ValueError(
            f"tau must be a number >= 0, got {tau}; leave restoration guidance out to switch it off"
        )
    if not sigma_max > 0:
        raise ValueError(f"sigma_max must be positive, got {sigma_max}")

    def guided(x: Tensor, step: Step) -> Tensor:
        denoised = denoise(x, step)
        if sigma_stop is not None and step.sigma_next <= sigma_stop:
            return denoised
        pull = (step.sigma / sigma_max) ** tau
        return denoised - pull * (denoised - z_center)

    return guided


def protected(denoise: Denoise, z_keep: Tensor, mask: Tensor) -> Denoise:
    """Replace each estimate by `z_keep` (B, C, h, w) as far as `mask` (B, 1, h, w) is below 1."""

    def masked(x: Tensor, step: Step) -> Tensor:
        return torch.lerp(z_keep, denoise(x, step), mask)

    return masked


def _tile_batch(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else torch.cat([x] * copies)


def _repeat(cond: CondT, batch: int) -> CondT:
    """Repeat the B rows of `cond` as a whole up to `batch` rows: one copy per window."""
    return _map_fields(lambda field: _tile_batch(field, batch // len(field)), cond)


def _concatenate(conds: Sequence[CondT]) -> CondT:
    """Concatenate conditions along the batch, field by field."""
    if len(conds) == 1:
        return conds[0]
    return _rebuild(conds[0], [torch.cat(fields) for fields in zip(*conds, strict=True)])


def _map_fields(function: Callable[[Tensor], Tensor], cond: CondT) -> CondT:
    return _rebuild(cond, [function(field) for field in cond])


def _rebuild(like: CondT, fields: list[Tensor]) -> CondT:
    if hasattr(like, "_fields"):  # a named tuple takes fields as arguments, a tuple a sequence
        return type(like)(*fields)
    return type(like)(fields)
