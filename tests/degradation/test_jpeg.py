"""JPEG against Pillow's libjpeg, and what holds at any quality and size."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from open_supir.degradation.jpeg import _code, diffjpeg, diffjpeg_tables, jpeg, jpeg_tables

from .samples import NAMES, photo, psnr


def compress(image: Tensor, quality: float, codec: str = "libjpeg") -> Tensor:
    qualities = torch.full((len(image),), quality)
    if codec == "libjpeg":
        return jpeg(image, jpeg_tables(qualities))
    return diffjpeg(image, diffjpeg_tables(qualities))


def pillow(image: Tensor, quality: int) -> Tensor:
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("quality", [30, 50, 70, 95])
@pytest.mark.parametrize("name", NAMES)
def test_psnr_is_libjpegs(name: str, quality: int) -> None:
    """Within .1 dB of Pillow's; odd sides, so that borders count."""
    image = photo(name, 221, 187)
    ours, theirs = compress(image, quality), pillow(image, quality)
    assert abs(psnr(ours, image) - psnr(theirs, image)) < 0.1
    assert psnr(ours, theirs) > 47  # most pixels are equal: other codecs reach 36 to 44


@pytest.mark.parametrize("quality", [10, 25, 50, 60, 75, 90, 95, 100])
def test_tables_are_those_in_libjpegs_files(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
    stored = Image.open(file).quantization  # type: ignore[attr-defined]
    ours = jpeg_tables(torch.tensor([float(quality)]))[0]
    for i in range(2):
        assert ours[i].int().tolist() == list(stored[i])


@pytest.mark.parametrize("name", NAMES)
def test_quality_improves_psnr(name: str) -> None:
    image = photo(name, 128, 128)
    values = [psnr(compress(image, q), image) for q in (30, 40, 50, 60, 70, 80, 90, 95)]
    assert values == sorted(values)


@pytest.mark.parametrize("exact", [True, False])
def test_coefficients_are_multiples_of_the_tables_steps(exact: bool) -> None:
    """By scipy's DCT. Rounding the decoded planes adds at most .5 a pixel, 8 x .5 a coefficient.

    Coefficients that are no multiples would be off by a quarter of a step on average, above 10.
    """
    generator = torch.Generator().manual_seed(0)
    luma = torch.randint(-50, 50, (2, 1, 32, 48), generator=generator).float() * 0.5
    chroma = torch.randint(-50, 50, (2, 2, 16, 24), generator=generator).float() * 0.5
    tables = jpeg_tables(torch.tensor([20.0, 35.0]))
    for planes, steps in zip(
        _code(luma, chroma, tables, exact=exact), tables.unbind(1), strict=True
    ):
        blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4).numpy()
        coefficients = torch.from_numpy(dctn(blocks, axes=(-2, -1), norm="ortho"))
        steps = steps.view(2, 1, 1, 1, 8, 8)
        multiples = coefficients / steps
        error = (multiples - multiples.round()).abs() * steps
        assert error.max() < (4.01 if exact else 1e-3) and error.mean() < (0.3 if exact else 1e-4)
        assert (coefficients.abs() > steps).any()


@pytest.mark.parametrize("codec", ["libjpeg", "diffjpeg"])
def test_quality_100_is_finite_and_almost_lossless(codec: str) -> None:
    image = photo("astronaut.png", 128, 128)
    result = compress(image, 100, codec)
    assert result.isfinite().all()
    assert psnr(result, image) > 38


def test_second_pass_changes_little() -> None:
    once = compress(photo("coffee.png", 128, 128), 60)
    assert psnr(compress(once, 60), once) > 45


def test_lower_quality_shows_more_blocks() -> None:
    image = photo("astronaut.png", 256, 256)

    def blockiness(q: float) -> float:
        steps = compress(image, q).diff(dim=3).abs().mean((0, 1, 2))
        seams = steps[7::8].mean()
        return float(seams / steps.mean())

    values = [blockiness(q) for q in (10, 20, 40, 90)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("height", [65, 72, 95])
def test_borders_are_no_worse_than_the_middle(height: int) -> None:
    """The last row lies in a padded block. Zero padding spoils it, repeating it does not."""
    image = torch.cat([photo(name, height, 160) for name in NAMES])
    ours, zeros = compress(image, 50) - image, compress(image, 50, "diffjpeg") - image
    middle = ours[..., 16:48, :].square().mean()
    assert ours[..., -1, :].square().mean() < 2 * middle
    assert zeros[..., -1, :].square().mean() > 3 * middle
    assert ours[..., -1, :].mean().abs() < 0.5 / 255
    kept = (ours + image).diff().abs().mean((0, 1, 3)) / image.diff().abs().mean((0, 1, 3))
    assert kept[-1] > 0.9 * kept[16:48].mean()  # as sharp as the middle
    turned = image.transpose(2, 3)  # so that the last column lies in a padded block
    ours = compress(turned, 50) - turned
    assert ours[..., -1].square().mean() < 2 * ours[..., 16:48].square().mean()
    assert ours[..., -1].mean().abs() < 0.5 / 255


def test_grey_stays_grey() -> None:
    image = photo("coffee.png", 64, 64).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    result = compress(image, 50)
    assert (result - result[:, :1]).abs().max() == 0


@pytest.mark.parametrize("side", [1, 2, 5, 15])
def test_tiny_images_pass(side: int) -> None:
    result = compress(torch.rand(2, 3, side, side + 1), 50)
    assert result.shape == (2, 3, side, side + 1) and result.isfinite().all()


def test_samples_of_a_batch_have_their_own_quality_and_inputs_stay() -> None:
    image = torch.cat([photo("coffee.png", 48, 64), photo("astronaut.png", 48, 64)])
    qualities = torch.tensor([30.0, 90.0])
    before = image.clone()
    together = jpeg(image, jpeg_tables(qualities))
    assert torch.equal(image, before) and qualities.tolist() == [30.0, 90.0]
    for i, q in enumerate(qualities):
        assert (together[i] - compress(image[i : i + 1], float(q))[0]).abs().max() < 1e-6


def test_images_on_a_larger_canvas_come_out_the_same() -> None:
    """`ends` says where an image stops; rows beyond repeat its last one."""
    image = photo("chelsea.png", 37, 48)
    rows, columns = torch.arange(64).clamp_max(36), torch.arange(80).clamp_max(47)
    canvas = image[:, :, rows][..., columns]
    for make, codec in ((jpeg_tables, jpeg), (diffjpeg_tables, diffjpeg)):
        tables = make(torch.tensor([42.0]))
        alone = codec(image, tables)
        placed = codec(canvas, tables, (rows[None], columns[None]))[..., :37, :48]
        assert ((alone - placed).abs() > 1e-5).float().mean() < 1e-3
