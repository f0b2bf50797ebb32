"""Resizing by tables: which source pixels an output pixel reads, and with what weights.

Equal to `torch.nn.functional.interpolate` to 1e-6 in all three modes, or to Pillow's filters; one
table per sample.

Shapes: B batch, O output side, T taps per output pixel.
"""

import math

import torch
from torch import Tensor

from open_supir.degradation.config import MODES

AREA, BILINEAR, BICUBIC = range(len(MODES))
PILLOW_UNIT = (
    1 << 22
)  # Pillow sums 8-bit values in integers, by weights that are multiples of 2^-22


def resize_table(
    n_in: Tensor,
    n_out: Tensor,
    ratio: Tensor,
    mode: Tensor,
    length: int,
    taps: int,
    antialias: bool,
) -> tuple[Tensor, Tensor]:
    """Return indices and weights of one axis, computed as torch's interpolation or Pillow does.

    Args:
        n_in, n_out: (B,) int64 sides before and after.
        ratio: (B,) source pixels per output pixel: float32 as in torch, float64 as in Pillow.
        mode: (B,) index into `MODES`.
        length: O; outputs past `n_out` repeat the last one.
        taps: T; unused taps weigh 0.
        antialias: Widen bilinear and bicubic filters when scaling down.

    Returns:
        (B, O, T) int64 and the type of `ratio`; in float64, multiples of 2^-22.
    """
    n_in, n_out, mode = (value[:, None, None] for value in (n_in, n_out, mode))
    ratio = ratio[:, None, None]
    out = torch.minimum(torch.arange(length)[:, None], n_out - 1)
    tap = torch.arange(taps)
    start = out * n_in // n_out
    stop = -(-(out + 1) * n_in // n_out)
    area = (start, torch.where(tap < stop - start, 1.0, 0.0) / (stop - start))
    filters = _antialiased if antialias else _interpolated
    linear, cubic = (
        filters(out, n_in, ratio, tap, cubic=False),
        filters(out, n_in, ratio, tap, cubic=True),
    )
    first = torch.where(mode == AREA, area[0], torch.where(mode == BILINEAR, linear[0], cubic[0]))
    weight = torch.where(mode == AREA, area[1], torch.where(mode == BILINEAR, linear[1], cubic[1]))
    index = torch.minimum((first + tap).clamp_min(0), n_in - 1)
    if ratio.dtype == torch.float64:
        weight = (weight.double() * PILLOW_UNIT).round() / PILLOW_UNIT
    return index, weight.to(ratio.dtype)


def count_taps(modes: tuple[str, ...], ratio: float, antialias: bool) -> int:
    """Return the most taps that an output pixel can have at `ratio` source pixels each."""
    widen = max(ratio, 1.0) if antialias else 1.0
    taps = {
        "area": math.ceil(ratio) + 1,
        "bilinear": 2 * math.ceil(widen) + antialias,
        "bicubic": 4 * math.ceil(widen) + antialias,
    }
    return max(taps[mode] for mode in modes)


def pillow_table(n_in: int, n_out: int, mode: str) -> tuple[Tensor, Tensor]:
    """Return (1, O, T) indices and float64 weights by which Pillow resizes an axis."""
    sides, ratio = (torch.tensor([n_in]), torch.tensor([n_out])), n_in / n_out
    kind, taps = torch.tensor([MODES.index(mode)]), count_taps((mode,), ratio, True)
    step = torch.tensor([ratio], dtype=torch.float64)
    return resize_table(*sides, step, kind, n_out, taps, True)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Evaluate Keys' cubic convolution kernel at a non-negative distance."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _interpolated(
    out: Tensor, n_in: Tensor, ratio: Tensor, tap: Tensor, *, cubic: bool
) -> tuple[Tensor, Tensor]:
    """Return first index and weights, plain: bilinear, or bicubic with a = -0.75."""
    centre = (out + 0.5) * ratio - 0.5
    if not cubic:
        centre = centre.clamp_min(0)
    base = centre.floor()
    t = centre - base
    if not cubic:
        return base.long(), torch.where(tap == 0, 1 - t, torch.where(tap == 1, t, 0.0))
    distance = torch.where(tap < 2, t + 1 - tap, tap - 1 - t)
    return base.long() - 1, torch.where(tap < 4, _cubic(distance, -0.75), 0.0)


def _antialiased(
    out: Tensor, n_in: Tensor, ratio: Tensor, tap: Tensor, *, cubic: bool
) -> tuple[Tensor, Tensor]:
    """Return first index and weights, antialiased: bilinear, or bicubic with a = -0.5."""
    widen = ratio.clamp_min(1)
    support = (2.0 if cubic else 1.0) * widen
    centre = (out + 0.5) * ratio
    first = (centre - support + 0.5).long().clamp_min(0)
    count = torch.minimum((centre + support + 0.5).long(), n_in) - first
    distance = ((tap + first - centre + 0.5) / widen).abs()
    weight = _cubic(distance, -0.5) if cubic else (1 - distance).clamp_min(0)
    weight = torch.where(tap < count, weight, 0.0)
    return first, weight / weight.sum(-1, keepdim=True)
