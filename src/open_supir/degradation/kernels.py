"""Blur kernels of a batch: Gaussian, generalised, plateau (isotropic or rotated) and sinc.

Shapes: B batch, K = `MAX_KERNEL`. Kernels sit centred in K x K, sum to 1 and are point symmetric,
so that correlation equals convolution.

Kornia's `get_gaussian_kernel2d` has no rotation and none of the other families. Kernels are
computed on the host in float64: rounding to float32 then hides how the last bits depend on the
batch. They differ from scipy's formula by less than 1e-6, the error of torch's Bessel function.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from open_supir.degradation.config import FAMILIES, MAX_KERNEL

KINDS = (*FAMILIES, "sinc", "none")
SINC, NONE = KINDS.index("sinc"), KINDS.index("none")


def make_kernels(
    kind: Tensor,
    side: Tensor,
    sigma_x: Tensor,
    sigma_y: Tensor,
    theta: Tensor,
    beta: Tensor,
    cutoff: Tensor,
) -> Tensor:
    """Return (B, K, K) float32 kernels; "none" gives a delta.

    Args:
        kind: Index into `KINDS`; like all arguments, (B,) on the CPU.
        side: Odd side of the window; zero outside.
        sigma_x, sigma_y: Standard deviation in pixels along the rotated axes.
        theta: Rotation in radians.
        beta: Exponent of the generalised and plateau families.
        cutoff: Cutoff of the sinc in radians per pixel.
    """
    kind, half = kind[:, None, None], (side[:, None, None] - 1) // 2
    sigma_x, sigma_y, theta, beta = (
        value.double()[:, None, None] for value in (sigma_x, sigma_y, theta, beta)
    )
    offset = torch.arange(MAX_KERNEL, dtype=torch.float64) - MAX_KERNEL // 2
    y, x = offset[:, None], offset[None, :]
    along = (theta.cos() * x + theta.sin() * y) / sigma_x
    across = (theta.cos() * y - theta.sin() * x) / sigma_y
    power = (along.square() + across.square()).clamp_min(1e-30) ** beta  # beta = 1 for Gaussians
    plateau = (kind == 4) | (kind == 5)
    weight = torch.where(plateau, 1 / (1 + power), (-0.5 * power).exp())
    weight = torch.where(kind == SINC, _sinc(cutoff.double()), weight)
    weight = torch.where(kind == NONE, ((x == 0) & (y == 0)).double(), weight)
    weight = weight * ((x.abs() <= half) & (y.abs() <= half))
    return (weight / weight.sum((1, 2), keepdim=True)).float()


def _sinc(cutoff: Tensor) -> Tensor:
    """Return the ideal circular low-pass's impulse responses (B, K, K) for (B,) cutoffs."""
    radius, where = _radii()
    safe = radius.clamp_min(0.5)  # the limit at 0 is handled below
    cutoff = cutoff[:, None]
    ring = cutoff * torch.special.bessel_j1(cutoff * safe) / (2 * math.pi * safe)
    ring = torch.where(radius == 0, cutoff.square() / (4 * math.pi), ring)
    return ring[:, where]


@lru_cache(maxsize=1)
def _radii() -> tuple[Tensor, Tensor]:
    """Return distinct distances from the centre and each pixel's index: Bessel is expensive."""
    offset = torch.arange(MAX_KERNEL) - MAX_KERNEL // 2
    squares, where = (offset[:, None] ** 2 + offset**2).unique(return_inverse=True)
    return squares.double().sqrt(), where
