"""The fixed degradations of benchmarks."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import data
from torch import Tensor

from open_supir.evaluation.synthetic import FixedDegradation


@pytest.fixture(scope="module")
def photo() -> Tensor:
    crop = np.ascontiguousarray(data.coffee()[100:196, 200:328])
    return torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255


def test_nothing_asked_is_the_same_image(photo: Tensor) -> None:
    assert torch.equal(FixedDegradation()(photo, 0), photo)


def test_blur_equals_scipy(photo: Tensor) -> None:
    pixels = photo[0].double().numpy()
    expected = ndimage.gaussian_filter(pixels, sigma=(0, 2, 2), truncate=4, mode="mirror")
    blurred = FixedDegradation(blur=2)(photo, 0)[0].numpy()
    assert np.abs(blurred - expected).max() <= 0.501 / 255  # ours is rounded to 8 bits


def test_reduction_equals_pillow(photo: Tensor) -> None:
    pixels = (photo[0].permute(1, 2, 0) * 255).byte().numpy()
    expected = Image.fromarray(pixels).resize((32, 24), Image.Resampling.BICUBIC)
    reduced = FixedDegradation(scale=4)(photo, 0)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(reduced - np.asarray(expected)).max() <= 1.01  # two roundings


def test_noise_has_the_stated_strength_and_follows_the_seed() -> None:
    grey = torch.full((1, 3, 128, 128), 128 / 255)
    degrade = FixedDegradation(noise=20)
    noisy = degrade(grey, 1)
    # 49152 samples: the estimate wanders by 20 / sqrt(2 n) = 0.06; rounding adds 1 / 12
    assert (noisy - grey).std().item() * 255 == pytest.approx(20, abs=0.3)
    assert torch.equal(noisy, degrade(grey, 1)) and not torch.equal(noisy, degrade(grey, 2))


def test_jpeg_is_the_codec(photo: Tensor) -> None:
    stream = io.BytesIO()
    pixels = (photo[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=50)
    compressed = FixedDegradation(jpeg=50)(photo, 0)[0].permute(1, 2, 0) * 255
    assert np.array_equal(compressed.round().byte().numpy(), np.asarray(Image.open(stream)))


def test_sizes_and_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="30x32 is not a multiple of the scale 4"):
        FixedDegradation(scale=4)(torch.zeros(1, 3, 30, 32), 0)
    with pytest.raises(ValueError, match="quality from 1 to 100, got 0"):
        FixedDegradation(jpeg=0)
