"""Pixel operations before and after the networks; images are (1, 3, H, W)."""

import hashlib

import torch
from torch import Tensor

from open_supir.base.dtypes import is_finite
from open_supir.base.images import resize, to_uint8, to_unit

CAPTION_SIDE = 1024  # vision models use no more than this


def noise_seed(image: Tensor, seed: int, sample: int = 0) -> int:
    """Return the seed of a sample's noise: a hash of the 8-bit image, its size, and `seed`."""
    number = f" sample {sample}" if sample else ""
    digest = hashlib.sha256(f"{seed} {tuple(image.shape[-2:])} {number}".encode())
    for channel in image.reshape(-1, *image.shape[-2:]):
        for rows in channel.split(1024):  # avoids an 8-bit copy of the whole image
            digest.update(to_uint8(rows).cpu().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 1  # non-negative as int64


def for_captioner(signed: Tensor) -> Tensor:
    """Return (3, H, W) in [0, 1], reduced to at most CAPTION_SIDE pixels on the longer side."""
    scale = min(1.0, CAPTION_SIDE / max(signed.shape[-2:]))
    size = (max(1, round(signed.shape[-2] * scale)), max(1, round(signed.shape[-1] * scale)))
    return to_unit(resize(signed, size))[0]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize to (h, w), clamped to [0, 1]; returns `image` itself if it has that size."""
    return image if tuple(image.shape[-2:]) == size else resize(image, size).clamp_(0, 1)


def check_finite(values: Tensor, what: str) -> None:
    """Raise if the networks overflowed: such values would become a black or white picture.

    Raises:
        FloatingPointError: A value is NaN or infinite.
    """
    if not is_finite(values):
        raise FloatingPointError(
            f"{what} holds NaN or infinity; use dtype=bfloat16 or float32, or other weights"
        )


def finished(signed: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Map an image from [-1, 1] to [0, 1] and its final size; overwrites the input."""
    unit = signed.add_(1).mul_(0.5).clamp_(0, 1)
    return resized(unit, size).to(device)


def mixed(restored: Tensor, image: Tensor, strength: float, mask: Tensor | None = None) -> Tensor:
    """Blend the input, resized to match, with the restored image by `strength` in [0, 1].

    A mask (1, 1, h, w) in [0, 1] multiplies the strength; where it is 0, the input stays exactly.
    """
    if strength == 1 and mask is None:
        return restored
    size = (restored.shape[-2], restored.shape[-1])
    before = resized(image, size).to(restored)
    if mask is None:
        return torch.lerp(before, restored, strength)
    return torch.lerp(before, restored, strength * resized(mask, size).to(restored))
