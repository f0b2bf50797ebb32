"""Tiling: denoise large latents window by window and average the estimates with smooth weights.

Averaging estimates instead of finished steps keeps one noise field for the whole canvas and works
with every sampler (MultiDiffusion, arXiv:2302.08113). B batch, h w latent size, k windows evaluated
together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from open_supir.diffusion.samplers import Denoise, Step

WEIGHT_FLOOR = 1e-3  # the smallest weight is its square, which fp16 can represent


class Window(NamedTuple):
    """A rectangle of the canvas: rows top..bottom and columns left..right, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, canvas: Tensor) -> Tensor:
        """Return the view of `canvas` (..., h, w) that this window covers."""
        return canvas[..., self.top : self.bottom, self.left : self.right]


class WindowedDenoise(Protocol):
    """A denoise function that can be told which parts of the canvas it gets."""

    def __call__(self, x: Tensor, step: Step, windows: Sequence[Window] | None = None) -> Tensor:
        """Estimate the clean latent of `x` (k * B, C, h, w).

        The B crops of the first window come first, then those of the second, and so on.
        """
        ...


def spread_windows(height: int, width: int, *, tile: int, overlap: float = 0.25) -> list[Window]:
    """Cover height x width with equal windows at evenly spread starts; return them row by row.

    A side shorter than `tile` gets one window of its own length.

    Args:
        overlap: Minimum share of a window that its neighbour covers too, in [0, 1).

    Raises:
        ValueError: `tile` is not positive, or `overlap` is not in [0, 1).
    """
    if tile < 1:
        raise ValueError(f"tile must be positive, got {tile}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    rows, columns = (_starts(length, tile, overlap) for length in (height, width))
    tile_height, tile_width = min(tile, height), min(tile, width)
    return [
        Window(top, top + tile_height, left, left + tile_width) for top in rows for left in columns
    ]


def tile_weights(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the blending weights (height, width) of a window, float32, in [1e-6, 1], symmetric.

    They are a squared sine along each side, with a floor, so that neighbours blend without a seam.
    """

    def profile(length: int) -> Tensor:
        # computed for one half and mirrored: the sine alone is symmetric only up to rounding
        centres = (torch.arange((length + 1) // 2, dtype=torch.float64) + 0.5) * (math.pi / length)
        half = centres.sin().square().clamp(min=WEIGHT_FLOOR)
        return torch.cat([half, half[: length // 2].flip(0)])

    return torch.outer(profile(height), profile(width)).to(device=device, dtype=torch.float32)


def tiled(
    denoise: WindowedDenoise, windows: Sequence[Window], weights: Tensor, *, batch_size: int = 1
) -> Denoise:
    """Denoise a canvas window by window and average the estimates.

    Args:
        denoise: Called with crops of x and the windows they come from.
        windows: Windows of equal size that cover the canvas.
        weights: Blending weights, broadcast against a crop (B, C, h, w).
        batch_size: Windows per call. Order and batching affect only rounding.

    Raises:
        ValueError: `windows` is empty, or `batch_size` is not positive.
    """
    if not windows:
        raise ValueError("tiled needs at least one window, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    groups = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]

    def denoise_tiles(x: Tensor, step: Step) -> Tensor:
        blend = weights.to(device=x.device)
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, blend.dtype))
        norm = torch.zeros_like(total[:1, :1])
        for group in groups:
            denoised = denoise(torch.cat([window.crop(x) for window in group]), step, group)
            for window, tile in zip(group, denoised.split(len(x)), strict=True):
                window.crop(total).add_(tile * blend)
                window.crop(norm).add_(blend)
        return total.div_(norm).to(x.dtype)

    return denoise_tiles


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    stride = max(1, int(tile * (1 - overlap)))
    gaps = math.ceil((length - tile) / stride)
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)]
