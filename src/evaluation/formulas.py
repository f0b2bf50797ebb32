"""Scores that are formulas: PSNR, SSIM, luma and the Laplacian sharpness statistic.

Shapes: B batch, H W image size. Images are float in [0, 1], RGB. Nothing here needs weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STUDIO_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # ITU-R BT.601, offset 16
FULL_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, full range
PSNR_EPS = 1e-8  # identical images give 80 dB instead of infinity, as in pyiqa
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def studio_luma(image: Tensor) -> Tensor:
    """Return the Y of studio-swing YCbCr (ITU-R BT.601): black is 16/255, white is 235/255.

    This is the Y of the super-resolution literature (MATLAB's rgb2ycbcr). Full-range luma reads
    1.32 dB lower in PSNR on the same images.

    Args:
        image: (B, 3, H, W).
    """
    return _weigh(image, STUDIO_LUMA) + 16 / 255


def psnr(restored: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB; at most 80 (see PSNR_EPS).

    Args:
        restored: (B, C, H, W).
        reference: Same shape.

    Returns:
        (B,) dB. One value an image: pooling the error over a batch gives another number.
    """
    error = (restored - reference).square().mean(dim=(1, 2, 3), dtype=torch.float64)
    return -10 * torch.log10(error + PSNR_EPS)


def ssim(restored: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each image (Wang et al. 2004), float32 throughout.

    11x11 Gaussian window of sigma 1.5, only windows that lie inside the image, mean over channels,
    negative contrast-structure terms set to 0: the convention of pyiqa. torchmetrics pads by
    reflection instead, which reads a little lower.

    Args:
        restored: (B, C, H, W), at least 11 pixels on each side.
        reference: Same shape.

    Returns:
        (B,) in [0, 1].
    """
    batch, channels = restored.shape[:2]
    x, y = restored.float(), reference.float()
    moments = torch.cat([x, y, x * x, y * y, x * y])  # (5 B, C, H, W)
    moments = _gaussian_valid(moments.flatten(0, 1).unsqueeze(1))
    moments = moments.unflatten(0, (5, batch, channels)).squeeze(3)
    mean_x, mean_y, square_x, square_y, cross = moments
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    structure = (2 * (cross - mean_x * mean_y) + SSIM_C2) / (variances + SSIM_C2)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    return (luminance * structure.clamp(min=0)).mean(dim=(1, 2, 3))


def laplacian_variance(image: Tensor) -> Tensor:
    """Return the variance of the 3x3 Laplacian of luma, in squared 8-bit units.

    A statistic of how much fine contrast there is, not of quality: noise raises it just as detail
    does. Full-range luma times 255, kernel [[0, 1, 0], [1, -4, 1], [0, 1, 0]], inside the image.

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


def _gaussian_valid(planes: Tensor) -> Tensor:
    """Blur (N, 1, H, W) by the SSIM window, rows then columns, without padding."""
    offsets = torch.arange(SSIM_WINDOW, dtype=planes.dtype, device=planes.device)
    window = torch.exp(-((offsets - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
