"""Colour fixes: give a restored image the colours of a reference, keeping its detail.

Image and reference are (B, 3, H, W) of one size, both in [0, 1] or both in [-1, 1]; results may
overshoot. Work is done in strips of rows, so that the device needs memory for one strip only; the
results are the same as on the whole image.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.devices import exact

WAVELET_LEVELS = 5
ADAIN_EPS = 1e-5
STRIP_PIXELS = 2**20  # maximum size of a strip; a strip has at least one row


def wavelet_color_fix(
    image: Tensor,
    reference: Tensor,
    *,
    levels: int = WAVELET_LEVELS,
    device: torch.device | str | None = None,
    strip_pixels: int = STRIP_PIXELS,
) -> Tensor:
    """Replace the low frequencies of `image` by those of `reference`.

    The high bands of an a-trous wavelet transform sum to the image minus its coarsest blur, and
    blurring is linear, so it suffices to add the blurred difference of the two images. Source:
    StableSR (arXiv:2305.07015).

    Args:
        image, reference: See above; on any device.
        levels: Number of blurs; the dilation doubles with each.
        device: Where to compute; None is the device of `image`.
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
    """Match each channel's mean and standard deviation to `reference` (arXiv:1703.06868).

    Args:
        image, reference, device, strip_pixels: As in `wavelet_color_fix`.
        eps: Added to variances.
    """
    mean, std = _statistics(image, eps, strip_pixels)
    target_mean, target_std = _statistics(reference, eps, strip_pixels)
    scale = target_std / std
    shift = target_mean - mean * scale
    return torch.addcmul(shift.float().to(image), image, scale.float().to(image))


def no_color_fix(
    image: Tensor, reference: Tensor, *, device: torch.device | str | None = None
) -> Tensor:
    """Return `image` unchanged."""
    return image


COLOR_FIXES: dict[str, Callable[..., Tensor]] = {
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
    "none": no_color_fix,
}


def _strips(image: Tensor, strip_pixels: int) -> Iterator[tuple[int, int]]:
    """Return the row ranges [first, last) of the strips."""
    height, width = image.shape[-2:]
    rows = max(1, strip_pixels // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _coarse(image: Tensor, levels: int) -> Tensor:
    """Blur by [1 2 1] / 4 along both axes; the dilation doubles from level to level."""
    channels = image.shape[1]
    row = image.new_tensor([0.25, 0.5, 0.25])
    kernel = row.outer(row).expand(channels, 1, 3, 3)
    for level in range(levels):
        hole = 2**level
        padded = F.pad(image, (hole,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, groups=channels, dilation=hole)
    return image


def _statistics(image: Tensor, eps: float, strip_pixels: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, 3, 1, 1); summed in float64 on the CPU."""
    total = squares = torch.zeros((), dtype=torch.float64)
    for top, bottom in _strips(image, strip_pixels):
        strip = exact(image[..., top:bottom, :])
        total = total + strip.sum(dim=(2, 3), keepdim=True)
        squares = squares + strip.square().sum(dim=(2, 3), keepdim=True)
    count = image.shape[-2] * image.shape[-1]
    mean = total / count
    variance = (squares - count * mean.square()) / max(count - 1, 1)
    return mean, (variance.clamp(min=0) + eps).sqrt()
