"""Colour fixes: give a restored image the colours of a reference, keeping its detail.

Images are (B, 3, H, W) of the reference's size, both unit or both signed; results may overshoot.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5
ADAIN_EPS = 1e-5


def wavelet_color_fix(image: Tensor, reference: Tensor, *, levels: int = WAVELET_LEVELS) -> Tensor:
    """Replace the low frequencies of `image` by those of `reference`.

    The high bands of an a-trous wavelet transform sum to the image less its coarsest blur, so two
    blurs are all it takes. Source: StableSR (arXiv:2305.07015).
    """
    return image - _coarse(image, levels) + _coarse(reference, levels)


def adain_color_fix(image: Tensor, reference: Tensor, *, eps: float = ADAIN_EPS) -> Tensor:
    """Give each channel of `image` the mean and deviation of `reference` (arXiv:1703.06868)."""
    mean, std = _statistics(image, eps)
    target_mean, target_std = _statistics(reference, eps)
    return (image - mean) / std * target_std + target_mean


def no_color_fix(image: Tensor, reference: Tensor) -> Tensor:
    """Return `image` as it is."""
    return image


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
    "none": no_color_fix,
}


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


def _statistics(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean = image.mean(dim=(2, 3), keepdim=True)
    return mean, (image.var(dim=(2, 3), keepdim=True) + eps).sqrt()
