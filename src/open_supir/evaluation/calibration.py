"""Whether a map of what was invented tells the truth: error by decile of the map."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Decile(NamedTuple):
    """A tenth of the pixels, by the map: its highest value, mean, and the error there, in levels.

    Levels are 8-bit; `error` is the root mean square over the pixels.
    """

    upto: float
    mean: float
    error: float


def deciles(levels: Sequence[Tensor], errors: Sequence[Tensor]) -> list[Decile]:
    """Sort the pixels of all pictures by the map and return the error of each tenth of them.

    Args:
        levels: Maps (H, W) of disagreement in 8-bit levels, one a picture.
        errors: Errors (H, W) of the same pixels, in 8-bit levels.

    Raises:
        ValueError: There are fewer than ten pixels, or sizes differ.
    """
    x, y = _flat(levels, errors)
    order = x.argsort(stable=True)
    parts = zip(x[order].tensor_split(10), y[order].tensor_split(10), strict=True)
    return [
        Decile(float(a.max()), float(a.mean()), float(b.square().mean().sqrt())) for a, b in parts
    ]


def rank_correlation(levels: Sequence[Tensor], errors: Sequence[Tensor]) -> float:
    """Return Spearman's rank correlation of map and error over the pixels of all pictures."""
    from scipy.stats import spearmanr

    one, two = _flat(levels, errors)
    return float(spearmanr(one.numpy(), two.numpy()).statistic)  # type: ignore[attr-defined]


def error_levels(image: Tensor, reference: Tensor) -> Tensor:
    """Return the error (H, W) of images (3, H, W) in [0, 1]: RMS over the channels, in levels."""
    return 255 * (image - reference).square().mean(dim=0).sqrt()


def _flat(levels: Sequence[Tensor], errors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    sizes = [[tuple(picture.shape) for picture in side] for side in (levels, errors)]
    pixels = sum(picture.numel() for picture in levels)
    if sizes[0] != sizes[1] or pixels < 10:
        raise ValueError(f"expected maps and errors of the same sizes, got {sizes[0]}, {sizes[1]}")
    one, two = (torch.cat([p.flatten() for p in side]).double() for side in (levels, errors))
    return one, two
