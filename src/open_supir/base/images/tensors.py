"""Tensors of pixels: the three value ranges, padding, resizing.

Shapes: B batch, H W image size. Ranges: "unit" is [0, 1], "signed" is [-1, 1], both float32;
uint8 only in files and in `Batch["hq"]`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def to_signed(image: Tensor) -> Tensor:
    """Map uint8 or unit float to signed float32, same shape."""
    unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return unit * 2 - 1


def to_unit(image: Tensor) -> Tensor:
    """Map uint8 or signed float to unit float32, same shape, clamped."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    return ((image.float() + 1) / 2).clamp(0, 1)


def to_uint8(image: Tensor) -> Tensor:
    """Map unit float to uint8, rounded half to even and clamped, same shape."""
    return (image.float() * 255).round().clamp(0, 255).to(torch.uint8)


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, 3, H, W) below and at the right to multiples of `multiple`, by reflection.

    Where the image is too small to reflect that far, the last reflected pixel is repeated.

    Returns:
        The padded image (`image` itself where nothing is missing), and (H, W) as it was, for
        `crop_to`.
    """
    height, width = image.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return image, (height, width)
    rows = _reflected(height, math.ceil(height / multiple) * multiple, image.device)
    columns = _reflected(width, math.ceil(width / multiple) * multiple, image.device)
    return image.index_select(-2, rows).index_select(-1, columns), (height, width)


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    index = torch.arange(padded, device=device)
    mirrored = 2 * (size - 1) - index
    return torch.where(index < size, index, mirrored.clamp(min=0))


def crop_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the top left (H, W) of `image`: undoes `pad_to_multiple`."""
    return image[..., : size[0], : size[1]]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., 3, H, W) to (h, w) by antialiased bicubic.

    uint8 stays uint8; floats are not clamped, and bicubic can overshoot.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image if image.ndim == 4 else image.unsqueeze(0)
    out = F.interpolate(
        batch.float(), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    if image.dtype == torch.uint8:
        out = out.round().clamp(0, 255).to(torch.uint8)
    return out if image.ndim == 4 else out[0]


def size_within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (H, W), reduced so that neither is larger than `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_short_side(image: Tensor, side: int) -> Tensor:
    """Resize (..., 3, H, W) so that its shorter side is `side`, keeping the aspect ratio."""
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def image_grid(rows: Sequence[Sequence[Tensor]], *, gap: int = 2) -> Tensor:
    """Lay rows of (3, H, W) unit images out as one (3, H', W') image with white gaps.

    Each column is as wide as its widest image, each row as high as its highest.
    """
    if not rows or not any(len(row) for row in rows):
        raise ValueError("image_grid needs at least one image")
    columns = max(len(row) for row in rows)
    widths = [
        max((row[c].shape[-1] for row in rows if c < len(row)), default=0) for c in range(columns)
    ]
    heights = [max((image.shape[-2] for image in row), default=0) for row in rows]
    grid = torch.ones(3, sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image, width in zip(row, widths, strict=False):
            grid[:, top : top + image.shape[-2], left : left + image.shape[-1]] = (
                image.detach().float().cpu()
            )
            left += width + gap
        top += height + gap
    return grid
