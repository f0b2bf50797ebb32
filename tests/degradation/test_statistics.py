"""Statistics against known noise, spectra and blocks; the quality of a JPEG in its pixels."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_supir.degradation.jpeg_traces import last_quality
from open_supir.degradation.statistics import NAMES, _axes, _enlargement, measure

from .samples import photo


def measured(image: Tensor) -> dict[str, float]:
    """Return the statistics of (3, H, W) by name."""
    return dict(zip(NAMES, measure(image[None])[0][0].tolist(), strict=True))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [2.0, 8.0, 20.0])
def test_noise_is_found_in_levels_and_told_grey_from_coloured(sigma: float) -> None:
    """8,000 pixels of flat patches: 2 % is three standard errors. Chroma of equal channels is 0."""
    flat = torch.full((3, 256, 256), 0.5)
    grey = measured(flat + sigma / 255 * noise(1, 256, 256))
    assert 2 ** grey["noise"] == pytest.approx(sigma, rel=0.03)
    assert grey["noise_correlation"] == pytest.approx(1, abs=0.01)
    assert 2 ** grey["colour_noise"] < 0.1
    colour = measured(flat + sigma / 255 * noise(3, 256, 256))
    assert colour["noise_correlation"] == pytest.approx(0, abs=0.03)
    luma = sigma * math.sqrt(0.299**2 + 0.587**2 + 0.114**2)
    assert 2 ** colour["noise"] == pytest.approx(luma, rel=0.05)


def test_variance_that_grows_with_brightness_is_told_from_even_noise() -> None:
    """Steps of brightness: of Poisson noise the relative slope is 1, of Gaussian noise 0."""
    steps = torch.linspace(0.2, 0.8, 8).repeat_interleave(32).expand(3, 256, 256)
    even = measured(steps + 0.03 * noise(1, 256, 256))
    growing = measured(steps + 0.04 * steps.sqrt() * noise(1, 256, 256))
    assert even["noise_by_brightness"] == pytest.approx(0, abs=0.15)
    assert growing["noise_by_brightness"] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("cutoff", [0.15, 0.3])
def test_the_cutoff_of_a_band_limited_image_is_found(cutoff: float) -> None:
    """Noise without frequencies above; 95 % of f^2 in a disc lie below 0.95^(1/4) = 0.987 of it.

    Bands are 0.06 wide, so half of that is the tolerance.
    """
    spectrum = torch.fft.fft2(noise(256, 256))
    f = torch.fft.fftfreq(256)
    spectrum[(f[:, None] ** 2 + f**2).sqrt() > cutoff] = 0
    image = 0.5 + 0.1 * torch.fft.ifft2(spectrum).real
    assert measured(image.expand(3, -1, -1))["cutoff"] == pytest.approx(cutoff, abs=0.03)


def test_slope_is_that_of_a_power_law() -> None:
    f = torch.fft.fftfreq(256)
    radius = (f[:, None] ** 2 + f**2).sqrt().clamp_min(1 / 256)
    image = torch.fft.ifft2(torch.fft.fft2(noise(256, 256)) / radius**1.0).real
    image = 0.5 + 0.1 * image / image.std()
    assert measured(image.expand(3, -1, -1))["slope"] == pytest.approx(-2, abs=0.25)


def test_blocks_count_at_multiples_of_eight_only() -> None:
    """Flat blocks of 8 pixels have steps at their borders; shifted by 4 they have none there."""
    blocks = torch.rand(1, 33, 33, generator=torch.Generator().manual_seed(1))
    blocks = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2).expand(3, -1, -1)
    image = blocks + 0.01 * noise(3, 264, 264)
    on, off = image[:, :256, :256], image[:, 4:260, 4:260]
    assert measured(on)["blockiness"] > 3 and measured(off)["blockiness"] < 0.1


@pytest.mark.parametrize("side", [90, 110])
def test_an_enlarged_image_shows_its_period(side: int) -> None:
    """Enlarged from `side` to 128, a peak stands at 1 - side / 128; resolution is 1 / 128."""
    small = 0.5 + 0.1 * noise(1, 3, side, side)
    large = torch.nn.functional.interpolate(small, size=128, mode="bicubic")
    images = torch.cat([large, 0.5 + 0.1 * noise(1, 3, 128, 128)])
    f, height, _ = _enlargement(images.mean(1) * 255).unbind(1)
    assert f[0].item() == pytest.approx(1 - side / 128, abs=1.5 / 128)
    assert height[0] > height[1] + 3


def test_power_along_rows_and_columns_ends_at_the_cutoff_of_reduction() -> None:
    """Nothing above 0.3 cycles per pixel of either axis; strips are 1/64 wide."""
    spectrum = torch.fft.fft2(noise(128, 128))
    f = torch.fft.fftfreq(128).abs()
    spectrum[(f[:, None] > 0.3) | (f > 0.3)] = 0
    strips = _axes(20 * torch.fft.ifft2(spectrum).real[None])[0]
    assert strips[:17].min() > strips[22:].max() + 6


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 64 pixels a side, got .1, 3, 64, 40"):
        measure(torch.zeros(1, 3, 64, 40))


def test_an_image_is_measured_alike_in_any_batch() -> None:
    batch = torch.cat([photo("coffee.png", 96, 96), photo("chelsea.png", 96, 96)])
    for one, of_batch in zip(measure(batch[1:]), measure(batch), strict=True):
        torch.testing.assert_close(one, of_batch[1:], rtol=1e-4, atol=1e-4)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Return what libjpeg makes of (3, H, W), as Pillow decodes it."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality)
    decoded = np.asarray(Image.open(stream)).copy()
    return torch.from_numpy(decoded).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("quality", [25, 50, 75, 90])
@pytest.mark.parametrize("name", ["coffee.png", "astronaut.png"])
def test_the_last_jpegs_quality_is_found_in_pixels(name: str, quality: int) -> None:
    assert last_quality(jpeg(photo(name, 192, 192)[0], quality)) == quality


def test_no_quality_is_invented_without_a_jpeg() -> None:
    """Nor where the grid was lost: shifted by a pixel, or resized."""
    image = photo("coffee.png", 200, 200)[0]
    assert last_quality(image) is None and last_quality(torch.full((3, 64, 64), 0.5)) is None
    compressed = jpeg(image, 60)
    assert last_quality(compressed[:, 1:, 1:]) is None
    smaller = torch.nn.functional.interpolate(compressed[None], scale_factor=0.8, mode="bilinear")
    assert last_quality((smaller[0] * 255).round() / 255) is None
