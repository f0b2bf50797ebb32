"""Metrics without weights: PSNR, SSIM, luma and the Laplacian sharpness statistic.

Shapes: B batch, H W image size. Images are RGB float in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STUDIO_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # ITU-R BT.601, offset 16
FULL_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range
PSNR_EPS = 1e-8  # identical images give 80 dB instead of infinity, as in pyiqa
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_BELL = [math.exp(-((i - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for i in range(SSIM_WINDOW)]
SSIM_WEIGHTS = tuple(value / sum(_BELL) for value in _BELL)
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def studio_luma(image: Tensor) -> Tensor:
    """Return the Y of studio-swing YCbCr (ITU-R BT.601): black is 16/255, white is 235/255.

    This is the Y of the super-resolution literature (MATLAB's rgb2ycbcr). With full-range luma,
    PSNR of the same images is 1.32 dB lower.

    Args:
        image: (B, 3, H, W).
    """
    return _weigh(image, STUDIO_LUMA) + 16 / 255


def psnr(restored: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB; at most 80 (see PSNR_EPS).

    Args:
        restored: (B, C, H, W).

    Returns:
        (B,) dB, one value per image: pooling the error over the batch would change the mean.
    """
    pairs = zip(restored, reference, strict=True)
    # mse_loss sums to 1e-7; dot products and norms are off by 5e-4 dB at a million pixels
    error = torch.stack([F.mse_loss(x, y) for x, y in pairs]).double()
    return -10 * torch.log10(error + PSNR_EPS)


def ssim(restored: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each image (Wang et al. 2004), float32 throughout.

    As in pyiqa: 11x11 Gaussian window with sigma 1.5, only windows fully inside the image, mean
    over channels, negative contrast-structure terms clamped to 0. torchmetrics uses reflection
    padding instead, which gives slightly lower values.

    Args:
        restored: (B, C, H, W), at least 11 pixels on each side.

    Returns:
        (B,) in [0, 1].
    """
    planes = zip(restored.float().flatten(0, 1), reference.float().flatten(0, 1), strict=True)
    values = torch.stack([_ssim_plane(x, y) for x, y in planes])
    return values.view(restored.shape[:2]).mean(dim=1)


def _ssim_plane(x: Tensor, y: Tensor) -> Tensor:
    """Return the SSIM of two (H, W) planes; working plane by plane stays in the CPU's cache."""
    mean_x, mean_y = _gaussian_valid(x), _gaussian_valid(y)
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    variances = _gaussian_valid(x * x + y * y) - squares
    structure = (2 * (_gaussian_valid(x * y) - product) + SSIM_C2) / (variances + SSIM_C2)
    luminance = (2 * product + SSIM_C1) / (squares + SSIM_C1)
    return (luminance * structure.clamp(min=0)).mean()


def laplacian_variance(image: Tensor) -> Tensor:
    """Return the variance of the 3x3 Laplacian of luma, in squared 8-bit units.

    It measures fine contrast, not quality: noise raises it just as detail does. Computed on
    full-range luma times 255 with the kernel [[0, 1, 0], [1, -4, 1], [0, 1, 0]], no padding.

    Args:
        image: (B, 3, H, W), at least 3 pixels on each side.

    Returns:
        (B,), 0 for a flat image.
    """
    luma = 255 * _weigh(image, FULL_LUMA)  # (B, 1, H, W)
    kernel = luma.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(luma, kernel).flatten(1).var(dim=1, correction=0)


def _weigh(image: Tensor, weights: tuple[float, float, float]) -> Tensor:
    return (image * image.new_tensor(weights).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _gaussian_valid(plane: Tensor) -> Tensor:
    """Blur (H, W) with the SSIM window, columns then rows, without padding."""
    return _slide(_slide(plane, 0), 1)


def _slide(plane: Tensor, dim: int) -> Tensor:
    """Convolve by summing shifted copies: on CPUs much faster than conv2d on so few channels."""
    size = plane.shape[dim] - SSIM_WINDOW + 1
    out = torch.zeros_like(plane.narrow(dim, 0, size))
    for offset, weight in enumerate(SSIM_WEIGHTS):
        out.add_(plane.narrow(dim, offset, size), alpha=weight)
    return out
