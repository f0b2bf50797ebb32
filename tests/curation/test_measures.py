import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from open_supir.curation.measures import (
    flat_share,
    focus,
    measure,
    perceptual_hash,
    sobel,
)
from open_supir.data.demo import load_photo
from tests.data.made import encoded, pixels

KERNEL = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


def _luma(seed: int = 0) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels(seed)).convert("L"), dtype=np.int16)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """Against scipy's convolution, inside the image; float32 sums: relative 1e-5."""
    expected = ndimage.convolve(_luma().astype(float), np.array(KERNEL))[1:-1, 1:-1].var()
    assert measure(pixels(0))["sharpness"] == pytest.approx(expected, rel=1e-5)


def test_focus_is_that_of_the_sharpest_tiles_whatever_the_rest() -> None:
    """Ten tiles of 64, of which one (and then two) hold noise: the quantile by numpy's rule."""
    edges = np.zeros((64, 640), dtype=np.int16)
    edges[:, 64:128] = np.where(np.indices((64, 64)).sum(axis=0) % 2, 30, -30)
    assert focus(edges, share=0.1) == pytest.approx(0.1 * 900)  # between first and second tile
    assert focus(edges) == pytest.approx(0.91 * 900)
    edges[:, 256:320] = edges[:, 64:128]
    assert focus(edges, share=0.1) == pytest.approx(900)
    assert focus(edges[:20, :64]) == 0  # smaller than a tile: one tile


def test_a_soft_background_is_no_blur() -> None:
    """A sharp fifth of a photograph, on a background that is all but even."""
    sharp = load_photo("astronaut.png").resize((640, 640))
    soft = sharp.filter(ImageFilter.GaussianBlur(8))
    both = soft.copy()
    both.paste(sharp.crop((192, 128, 512, 448)), (192, 128))
    scores = [measure(np.asarray(picture)) for picture in (sharp, both, soft)]
    assert scores[1]["focus"] > 0.5 * scores[0]["focus"] > 100 * scores[2]["focus"]
    assert scores[1]["sharpness"] < 0.5 * scores[0]["sharpness"]


def test_gradient_is_sobels() -> None:
    luma = _luma(1).astype(float)
    expected = np.hypot(ndimage.sobel(luma, 0), ndimage.sobel(luma, 1))[1:-1, 1:-1]
    np.testing.assert_allclose(sobel(_luma(1)), expected, rtol=1e-6, atol=1e-3)


def test_flat_share_counts_patches_without_contrast() -> None:
    luma = np.full((480, 720), 128, dtype=np.int16)
    rng = np.random.default_rng(0)
    luma[:240, :240] = rng.integers(0, 256, (240, 240))
    assert flat_share(luma) == pytest.approx(5 / 6)
    assert flat_share(luma[:100, 300:400]) == 1.0  # smaller than a patch: one patch


def test_extremes_of_luma_do_not_overflow() -> None:
    """Alternating black and white: the largest values of both filters."""
    luma = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    expected = ndimage.convolve(luma.astype(float), np.array(KERNEL))[1:-1, 1:-1].var()
    assert measure(np.stack([luma] * 3, axis=2))["sharpness"] == pytest.approx(expected, rel=1e-5)


def test_exposure_and_colour_of_known_pictures() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[:, 50:] = 255
    scores = measure(image)
    assert scores["dark"] == scores["bright"] == 0.5
    assert scores["luma"] == pytest.approx(127.5) and scores["contrast"] == pytest.approx(127.5)
    assert scores["colour"] == 0
    image[:] = (255, 0, 0)
    assert measure(image)["colour"] == 1.0 and measure(image)["contrast"] == 0


def _distance(one: Image.Image, two: Image.Image) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(two)).bit_count()


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"])
def test_hash_survives_what_copies_go_through(name: str) -> None:
    photo = load_photo(name)
    small = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
    coarse = Image.open(io.BytesIO(encoded(photo, "JPEG", quality=40)))
    assert _distance(photo, small) <= 3
    assert _distance(photo, coarse) <= 3
    assert _distance(photo, photo.filter(ImageFilter.GaussianBlur(1))) <= 3
    assert _distance(photo, ImageOps.mirror(photo)) > 10


def test_hashes_of_different_photographs_are_far_apart() -> None:
    names = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "brick.png", "grass.png")
    photos = [load_photo(name) for name in names]
    for number, one in enumerate(photos):
        for two in photos[:number]:
            assert _distance(one, two) > 12


def test_hash_of_a_flat_picture_does_not_hang_on_rounding() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (s, s), (90, 91, 92))) for s in (64, 100, 333)}
    assert len(hashes) == 1
