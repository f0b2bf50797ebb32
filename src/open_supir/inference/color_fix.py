"""Colour fixes: give a restored image the colours of a reference, keeping its detail.

Images are (B, 3, H, W) of the reference's size, both unit or both signed; results may overshoot.
Both work in strips of rows, so that the device needs memory for a strip only, and give what they
would on the whole image.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5
ADAIN_EPS = 1e-5
STRIP_PIXELS = 2**20  # of one strip: at most this many, where a row is no longer


def wavelet_color_fix(
    image: Tensor,
    reference: Tensor,
    *,
    levels: int = WAVELET_LEVELS,
    device: torch.device | str | None = None,
    strip_pixels: int = STRIP_PIXELS,
) -> Tensor:
    """Replace the low frequencies of `image` by those of `reference`.

    The high bands of an a-trous wavelet transform sum to the image less its coarsest blur, and blur
    is linear: blurring the difference of the two is all it takes. Source: StableSR
    (arXiv:2305.07015).

    Args:
        image, reference: See above; on any device.
        levels: Blurs, each with holes twice as wide.
        device: Where to work; None is where `image` is.
        strip_pixels: Pixels of a strip.
    """
    reach = 2**levels - 1  # 1 + 2 + 4 + ... pixels
    out = torch.empty_like(image)
    height = image.shape[-2]
    for top, bottom in _strips(image, strip_pixels):
        start, stop = max(0, top - reach), min(height, bottom + reach)
        rows = (..., slice(start, stop), slice(None))
        difference = reference[rows].to(device or image.device) - image[rows].to(
            device or image.device
        )
        own = (..., slice(top - start, bottom - start), slice(None))
        low = _coarse(difference, levels)[own].to(image.device)
        out[..., top:bottom, :] = image[..., top:bottom, :] + low
    return out


def adain_color_fix(
    image: Tensor,
    reference: Tensor,
    *,
    eps: float = ADAIN_EPS,
    device: torch.device | str | None = None,
    strip_pixels: int = STRIP_PIXELS,
) -> Tensor:
    """Give each channel of `image` the mean and deviation of `reference` (arXiv:1703.06868).

    Args:
        image, reference, device, strip_pixels: As in `wavelet_color_fix`.
        eps: Added to variances.
    """
    mean, std = _statistics(image, eps, strip_pixels)
    target_mean, target_std = _statistics(reference, eps, strip_pixels)
    scale = target_std / std
    shift = target_mean - mean * scale
    return torch.addcmul(shift.to(image), image, scale.to(image))


def no_color_fix(
    image: Tensor, reference: Tensor, *, device: torch.device | str | None = None
) -> Tensor:
    """Return `image` as it is."""
    return image


COLOR_FIXES: dict[str, Callable[..., Tensor]] = {
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
    "none": no_color_fix,
}


def _strips(image: Tensor, strip_pixels: int) -> Iterator[tuple[int, int]]:
    """Return the first and last row of strips; the last is excluded."""
    height, width = image.shape[-2:]
    rows = max(1, strip_pixels // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _coarse(image: Tensor, levels: int) -> Tensor:
    """Blur by [1 2 1] / 4 along both axes, with holes that double from level to level."""
    channels = image.shape[1]
    row = image.new_tensor([0.25, 0.5, 0.25])
    kernel = row.outer(row).expand(channels, 1, 3, 3)
    for level in range(levels):
        hole = 2**level
        padded = F.pad(image, (hole,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, groups=channels, dilation=hole)
    return image


def _statistics(image: Tensor, eps: float, strip_pixels: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (B, 3, 1, 1), float64: sums over strips stay exact enough."""
    total = squares = torch.zeros((), dtype=torch.float64, device=image.device)
    for top, bottom in _strips(image, strip_pixels):
        strip = image[..., top:bottom, :].double()
        total = total + strip.sum(dim=(2, 3), keepdim=True)
        squares = squares + strip.square().sum(dim=(2, 3), keepdim=True)
    count = image.shape[-2] * image.shape[-1]
    mean = total / count
    variance = (squares - count * mean.square()) / max(count - 1, 1)
    return mean, (variance.clamp(min=0) + eps).sqrt()
