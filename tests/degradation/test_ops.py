"""Blur, resize, noise and sharpening: invariants, moments, and independent implementations."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.filters import filter2d

from open_supir.degradation import ops
from open_supir.degradation.counter_rng import derive

from .samples import photo


def keys(*seeds: int) -> torch.Tensor:
    return derive(torch.tensor(seeds), 1)


def random_kernels(count: int, side: int) -> torch.Tensor:
    kernel = torch.rand(count, side, side, generator=torch.Generator().manual_seed(0))
    kernel = kernel + kernel.flip(1, 2)
    return kernel / kernel.sum((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("side", "height", "width"), [(7, 40, 33), (9, 147, 20), (13, 64, 64), (21, 50, 97)]
)
def test_blur_equals_kornias_filter2d(side: int, height: int, width: int) -> None:
    image, kernel = photo("coffee.png", height, width), random_kernels(1, side)
    assert torch.allclose(ops.blur(image, kernel), filter2d(image, kernel, "reflect"), atol=3e-6)


@pytest.mark.parametrize("side", [7, 15, 21])
@pytest.mark.parametrize(("height", "width"), [(150, 97), (97, 150), (30, 41)])
def test_separable_blur_equals_the_dense_one(side: int, height: int, width: int) -> None:
    """3e-6; (150, 97) is cut into strips that do not divide its height, (30, 41) is not cut."""
    image = photo("coffee.png", height, width)
    taps = torch.exp(-0.5 * (torch.arange(side) - side // 2).square() / 1.7**2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None]
    result = ops.blur(image, kernel, separable=True)
    assert torch.allclose(result, filter2d(image, kernel, "reflect"), atol=3e-6)


@pytest.mark.parametrize("side", [11, 17])  # by stencil, by FFT
def test_blur_uses_each_samples_own_kernel(side: int) -> None:
    image = torch.cat([photo("coffee.png", 90, 40), photo("astronaut.png", 90, 40)])
    kernel = random_kernels(2, side)
    together = ops.blur(image, kernel)
    for i in range(2):
        one = slice(i, i + 1)
        assert torch.allclose(together[one], ops.blur(image[one], kernel[one]), atol=1e-6)


def test_blur_by_a_delta_is_the_identity() -> None:
    image, delta = photo("coffee.png", 30, 31), torch.zeros(1, 9, 9)
    delta[:, 4, 4] = 1
    assert torch.allclose(ops.blur(image, delta), image, atol=1e-6)


@pytest.mark.parametrize("side", [9, 21])
def test_blur_keeps_constants_is_linear_and_never_exceeds_the_range(side: int) -> None:
    kernel = random_kernels(1, side)
    flat = torch.full((1, 3, 25, 30), 0.3)
    assert torch.allclose(ops.blur(flat, kernel), flat, atol=1e-6)
    a, b = photo("coffee.png", 40, 40), photo("rocket.jpg", 40, 40)
    mixed = ops.blur(0.3 * a - 2 * b, kernel)
    assert torch.allclose(mixed, 0.3 * ops.blur(a, kernel) - 2 * ops.blur(b, kernel), atol=1e-5)
    blurred = ops.blur(a, kernel)
    assert a.min() - 1e-6 <= blurred.min() and blurred.max() <= a.max() + 1e-6


@pytest.mark.parametrize("filtered", [ops.stencil, ops.fft_filter])
def test_blur_keeps_the_mean_of_circularly_extended_images(filtered: Callable) -> None:
    """Every pixel then gives away as much as it gets."""
    image, kernel = photo("coffee.png", 60, 44), random_kernels(1, 13)
    result = filtered(F.pad(image, (6, 6, 6, 6), mode="circular"), kernel)
    assert result.shape == image.shape
    assert torch.allclose(result.mean((2, 3)), image.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 3), (5, 11), (10, 40)])
def test_blur_takes_images_smaller_than_the_kernel(height: int, width: int) -> None:
    """Mirroring repeatedly with period 2 (n - 1), as numpy's pad does."""
    image, kernel = photo("coffee.png", height, width), random_kernels(1, 21)
    result = ops.blur(image, kernel)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect")
    expected = filter2d(torch.from_numpy(padded), kernel, padding="valid")
    assert torch.allclose(result, expected, atol=3e-6)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 13), (40, 25), (64, 64), (90, 96)])
def test_resize_keeps_constants_and_equals_torch(mode: str, size: tuple[int, int]) -> None:
    image = photo("astronaut.png", 61, 64)
    assert torch.equal(ops.resize(image, size, mode), F.interpolate(image, size=size, mode=mode))
    flat = torch.full_like(image, 0.7)
    assert torch.allclose(ops.resize(flat, size, mode), torch.tensor(0.7), atol=1e-6)
    assert ops.resize(image, (61, 64), mode) is image


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_drifting_resize_equals_torchs_scale_factor(mode: str) -> None:
    image, scale = photo("astronaut.png", 64, 57), 0.3777
    size = (int(64 * scale), int(57 * scale))
    expected = F.interpolate(image, scale_factor=scale, mode=mode)
    assert torch.equal(ops.resize(image, size, mode, scale=scale), expected)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_only_the_drifting_resize_moves_content(mode: str) -> None:
    """Down by .1523 and back a ramp returns in place; stepping by scale shifts its end by 6 px."""
    ramp = torch.arange(512.0).expand(1, 3, 16, 512)
    small = ops.resize(ramp, (2, 77), mode)
    back = ops.resize(small, (16, 512), "bilinear")[0, 0, 8]
    shift = (back - ramp[0, 0, 0])[16:496].unflatten(0, (12, 40)).mean(1)
    assert shift.abs().max() < 0.3
    if mode != "area":
        assert shift.mean().abs() < 0.01  # the ramp's centroid stays
        drifted = ops.resize(ramp, (2, 77), mode, scale=0.1523)
        shift = ops.resize(drifted, (16, 512), "bilinear")[0, 0, 8] - ramp[0, 0, 0]
        assert 5 < shift[480].abs() < 7 and 2 < shift[256].abs() < 4


@pytest.mark.parametrize("sigma", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_the_moments_asked_for(sigma: float, gray: bool) -> None:
    image = torch.full((1, 3, 200, 200), 0.5)
    noise = ops.gaussian_noise(image, torch.tensor([sigma]), keys(3), gray=gray) - image
    count = 40_000 * (1 if gray else 3)
    assert noise.mean().abs() * 255 < 4 * sigma / count**0.5
    assert abs(float(noise.std()) * 255 / sigma - 1) < 4 / (2 * count) ** 0.5
    assert ((noise - noise[:, :1]).abs().max() == 0) == gray


@pytest.mark.parametrize("gray", [False, True])
def test_noise_of_different_samples_is_uncorrelated(gray: bool) -> None:
    """In Real-ESRGAN's code the grey noise of a batch is one and the same draw."""
    image = torch.full((2, 3, 128, 128), 0.5)
    noise = ops.gaussian_noise(image, torch.tensor([20.0, 20.0]), keys(0, 1), gray=gray) - image
    assert torch.corrcoef(noise.flatten(1))[0, 1].abs() < 0.02


@pytest.mark.parametrize("value", [4, 40, 128, 215])
def test_poisson_noise_has_the_moments_of_each_grey_level(value: int) -> None:
    """Mean b, variance scale^2 b / levels; levels is 256 as the ramp beside it has them all."""
    image = (torch.arange(256.0) / 255).repeat_interleave(40).expand(1, 3, 256, 10240).contiguous()
    image[..., :5120] = value / 255
    image[..., 5120:] = (torch.arange(5120) % 256) / 255
    scale = 0.5
    result = ops.poisson_noise(image, torch.tensor([scale]), keys(1))[..., :5120]
    count, b = result.numel(), value / 255
    variance = scale**2 * b / 256
    assert abs(float(result.mean()) - b) < 5 * (variance / count) ** 0.5
    assert abs(float(result.var()) / variance - 1) < 0.02


def test_grey_poisson_noise_is_the_same_in_all_channels() -> None:
    image = photo("coffee.png", 64, 64) * 0.5 + 0.25
    noise = ops.poisson_noise(image, torch.tensor([1.0]), keys(1), gray=True) - image
    assert (noise - noise[:, :1]).abs().max() < 1e-6 and noise.std() > 0.01


def test_flat_images_do_not_drown_in_poisson_noise() -> None:
    """One level: the reference's rule gives a deviation of 181 / 255, the floor 22.6 / 255."""
    flat = torch.full((1, 3, 64, 64), 0.5)
    sane = ops.poisson_noise(flat, torch.tensor([1.0]), keys(1))
    wild = ops.poisson_noise(flat, torch.tensor([1.0]), keys(1), floor=1)
    assert abs(float(sane.std()) - (0.5 / 64) ** 0.5) < 0.005
    assert wild.std() > 0.4


@pytest.mark.parametrize(("levels", "power"), [(1, 0), (2, 1), (3, 2), (64, 6), (65, 7), (256, 8)])
def test_levels_are_counted_and_rounded_up_to_powers_of_two(levels: int, power: int) -> None:
    level = (torch.arange(256) % levels).view(1, 1, 16, 16)
    assert ops.count_levels(level, 1).tolist() == [power]
    assert ops.count_levels(level, 256).tolist() == [8]


def test_unsharp_equals_the_dense_formula_and_leaves_flat_images() -> None:
    """3e-4: a pixel at the threshold may fall on either side of it."""
    flat = torch.full((1, 3, 64, 64), 0.4)
    assert torch.allclose(ops.unsharp(flat), flat, atol=1e-6)
    image = photo("astronaut.png", 96, 80)
    taps = torch.exp(-0.5 * (torch.arange(51.0) - 25).square() / 64)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None]
    residual = image - filter2d(image, kernel, "reflect")
    soft = filter2d((residual.abs() * 255 > 10).float(), kernel, "reflect")
    expected = soft * (image + 0.5 * residual).clamp(0, 1) + (1 - soft) * image
    assert (ops.unsharp(image) - expected).abs().max() < 3e-4
    assert (ops.unsharp(image) - expected).abs().mean() < 1e-6
