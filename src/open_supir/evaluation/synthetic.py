"""Fixed degradations for benchmarks: Gaussian blur, bicubic reduction, Gaussian noise, JPEG."""

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from open_supir.base.images import resize, to_uint8, to_unit


@dataclass(frozen=True, kw_only=True)
class FixedDegradation:
    """Blur, then reduce, then add noise, then compress; None or a scale of 1 skips a step."""

    blur: float | None = None  # standard deviation of the Gaussian blur, in pixels of the HQ image
    scale: int = 1  # reduction factor (antialiased bicubic); image sides must be multiples of it
    noise: float | None = None  # standard deviation of the Gaussian noise, in [0, 255] units
    jpeg: int | None = None  # quality of JPEG compression (libjpeg, 4:2:0 chroma)

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise ValueError(f"jpeg must be a quality from 1 to 100, got {self.jpeg}")
        for name in ("blur", "noise"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive or null, got {value}")

    def __call__(self, hq: Tensor, seed: int) -> Tensor:
        """Degrade (1, 3, H, W) in [0, 1] to (1, 3, H / scale, W / scale), 8-bit values.

        Raises:
            ValueError: A side is not a multiple of `scale`.
        """
        height, width = hq.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(f"{height}x{width} is not a multiple of the scale {self.scale}")
        lq = hq if self.blur is None else _gaussian_blur(hq, self.blur)
        lq = resize(lq, (height // self.scale, width // self.scale))
        if self.noise is not None:
            generator = torch.Generator().manual_seed(seed)
            lq = lq + self.noise / 255 * torch.randn(lq.shape, generator=generator)
        lq = to_uint8(lq)
        return to_unit(lq if self.jpeg is None else _jpeg(lq, self.jpeg))


def _gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian cut off at four sigma; edges are mirrored."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, 1, -1)  # (3, 1, 1, taps)
    padded = F.pad(image, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel, groups=image.shape[1])
    return F.conv2d(rows, kernel.transpose(-1, -2), groups=image.shape[1])


def _jpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality)
    decoded = np.array(Image.open(stream).convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1).unsqueeze(0)
