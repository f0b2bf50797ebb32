"""Formulas against hand-computed values and scikit-image."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import color, data, metrics
from torch import Tensor

from open_supir.evaluation.formulas import laplacian_variance, psnr, ssim, studio_luma


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """A photograph of 96x80 pixels and a noisy copy, both 8-bit values in [0, 1]."""
    crop = np.ascontiguousarray(data.chelsea()[60:156, 100:180])
    clean = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
    noise = 0.06 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return ((clean + noise).clamp(0, 1) * 255).round() / 255, clean


def _hwc(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).double().numpy()


def test_psnr_of_a_constant_difference_is_the_formula() -> None:
    reference = torch.full((2, 3, 8, 8), 0.5)
    restored = reference.clone()
    restored[0] += 0.1
    restored[1] += 0.01
    # 10 log10(1 / 0.01) and 10 log10(1 / 0.0001); the epsilon of 1e-8 costs 4e-4 dB at 40 dB
    assert psnr(restored, reference).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_of_identical_images_is_80_db() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == pytest.approx(80.0, abs=1e-9)


def test_psnr_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    expected = metrics.peak_signal_noise_ratio(_hwc(pair[1]), _hwc(pair[0]), data_range=1)
    assert psnr(*pair).item() == pytest.approx(expected, abs=1e-4)


def test_studio_luma_of_black_and_white_is_16_and_235() -> None:
    image = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    luma = 255 * studio_luma(image)
    assert luma[:, 0, 0, 0].tolist() == pytest.approx([16.0, 235.0], abs=1e-4)


def test_studio_luma_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    expected = color.rgb2ycbcr(_hwc(pair[0]))[..., 0]
    np.testing.assert_allclose(255 * studio_luma(pair[0])[0, 0].numpy(), expected, atol=1e-3)


def test_studio_luma_psnr_is_above_full_range_by_the_swing(pair: tuple[Tensor, Tensor]) -> None:
    """Full-range luma differs by the factor 255/219, so by 1.32 dB, on any pair."""
    weights = torch.tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 219
    full = [(image * weights).sum(1, keepdim=True) for image in pair]
    gap = psnr(*map(studio_luma, pair)) - psnr(full[0], full[1])
    assert gap.item() == pytest.approx(20 * math.log10(255 / 219), abs=1e-3)


def test_ssim_equals_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    expected = metrics.structural_similarity(
        _hwc(pair[1]), _hwc(pair[0]), data_range=1, channel_axis=2, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    # float32 moments here, float64 there; no window of this pair has negative structure
    assert ssim(*pair).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_identical_images_is_one() -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_ssim_of_two_constants_is_the_luminance_term() -> None:
    dark, bright = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert ssim(dark, bright).item() == pytest.approx(expected, abs=1e-4)


def test_laplacian_variance_of_a_flat_image_is_zero() -> None:
    assert laplacian_variance(torch.full((1, 3, 8, 8), 0.3)).item() == pytest.approx(0, abs=1e-6)


def test_laplacian_variance_of_a_checkerboard_is_the_formula() -> None:
    """Alternating 0 and 0.1: the Laplacian is +-4 * 25.5, equally often on an even grid."""
    rows = torch.arange(10)
    board = ((rows[:, None] + rows[None]) % 2).float() * 0.1
    value = laplacian_variance(board.expand(1, 3, 10, 10)).item()
    assert value == pytest.approx((4 * 25.5) ** 2, rel=1e-4)


def test_laplacian_variance_equals_scipy(pair: tuple[Tensor, Tensor]) -> None:
    luma = 255 * _hwc(pair[0]) @ np.array([0.299, 0.587, 0.114])
    expected = ndimage.laplace(luma)[1:-1, 1:-1].var()
    assert laplacian_variance(pair[0]).item() == pytest.approx(expected, rel=1e-4)
