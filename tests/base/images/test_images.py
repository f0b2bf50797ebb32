"""Ranges, odd files, atomic writing, padding."""

import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from open_supir.base.images import list_images, read_image, resize, to_signed, to_uint8, to_unit
from open_supir.base.images.inputs import find_photos
from open_supir.base.images.tensors import crop_to, image_grid, pad_to_multiple, resize_short_side
from open_supir.base.images.write import write_image


def test_ranges_map_ends_and_middle() -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_unit(levels).tolist() == [0.0, 1.0]
    assert to_signed(levels).tolist() == [-1.0, 1.0]
    assert to_signed(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1.0, 0.0, 1.0]
    assert to_unit(torch.tensor([-1.0, 0.0, 1.0, 1.5, -3.0])).tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]


def test_to_uint8_rounds_half_to_even_and_clamps() -> None:
    unit = torch.tensor([0.5 / 255, 1.5 / 255, 2.5 / 255, -1.0, 2.0], dtype=torch.float64)
    assert to_uint8(unit).tolist() == [0, 2, 2, 0, 255]


def test_every_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(levels)), levels)
    assert torch.equal(to_uint8(to_unit(to_signed(levels))), levels)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_read_image_keeps_rgb_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image.dtype == torch.uint8 and image.shape == (3, 5, 7)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_read_image_applies_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255  # white left half: on top after turning right
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(save(tmp_path / "a.png", pixels, exif=exif))
    assert image.shape == (3, 16, 8)
    assert image[:, :8].min() == 255 and image[:, 8:].max() == 0


def test_read_image_scales_16_bit_grey(tmp_path: Path) -> None:
    """Pillow's own conversion saturates 16-bit files to white."""
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    image = read_image(save(tmp_path / "a.png", values))
    assert np.array_equal(image[0].numpy(), np.rint(values / 257).astype(np.uint8))


def test_read_image_rounds_16_bit_colour(tmp_path: Path) -> None:
    """Pillow's own conversion cuts the lower byte off."""
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    image = read_image(tmp_path / "a.png").permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.rint(values / 257).astype(np.uint8))


def test_read_image_lays_alpha_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # transparent red
    pixels[0, 0, 3] = 255  # but for one pixel
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert image[:, 1, 1].tolist() == [255, 255, 255]


def test_read_image_lays_palette_transparency_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "a.png", transparency=0)
    read = read_image(tmp_path / "a.png")
    assert read[:, 0, 0].tolist() == [255, 255, 255] and read[:, 1, 1].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK"])
def test_read_image_gives_three_channels_of_any_mode(tmp_path: Path, mode: str) -> None:
    pixels = np.full((16, 16, 3), 255, dtype=np.uint8)
    pixels[:8] = 0
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = read_image(save(path, pixels, mode))
    assert image.shape == (3, 16, 16)
    assert image[:, 2].float().mean() < 40 and image[:, 13].float().mean() > 215


def test_read_image_converts_icc_profiles(tmp_path: Path) -> None:
    """A file tagged XYZ-like must change; one tagged sRGB must not."""
    pixels = np.full((4, 4, 3), (200, 100, 50), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read_image(save(tmp_path / "s.png", pixels, icc_profile=srgb))
    assert (same[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    mismatched = read_image(save(tmp_path / "l.png", pixels, icc_profile=lab))
    assert mismatched[:, 0, 0].tolist() == [200, 100, 50]  # does not fit: ignored, with a warning


def test_read_image_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="broken.png: not a readable image"):
        read_image(broken)
    with pytest.raises(FileNotFoundError, match="missing.png"):
        read_image(tmp_path / "missing.png")


def test_read_image_refuses_truncated_jpeg(tmp_path: Path) -> None:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data, "JPEG")
    (tmp_path / "t.jpg").write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    with pytest.raises(ValueError, match="t.jpg"):
        read_image(tmp_path / "t.jpg")


def test_read_image_checks_the_size_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "big.png", np.zeros((100, 100, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="10000 pixels|100x100"):
        read_image(path, max_pixels=9_999)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_write_image_leaves_one_file_and_its_record(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"a{suffix}"
    write_image(path, torch.full((3, 8, 8), 0.5), record={"prompt": "caf\u00e9"})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert (read_image(path).int() - 128).abs().max() <= 2
    with Image.open(path) as image:
        text = image.info.get("restoration")
        if text is None:
            root = ElementTree.fromstring(image.info["xmp"])
            (text,) = (element.text for element in root.iter("{urn:open-supir:}restoration"))
    assert json.loads(text) == {"prompt": "caf\u00e9"}


def test_write_image_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, torch.zeros(3, 4, 4))
    before = path.read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_image(path, torch.zeros(5, 4, 4))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="suffix"):
        write_image(tmp_path / "a.gif", torch.zeros(3, 4, 4))


def test_list_images_is_sorted_recursive_and_clear(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.JPG", "note.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path) == [tmp_path / "b.png", tmp_path / "sub/a.JPG"]
    assert list_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    with pytest.raises(ValueError, match="not an image"):
        list_images(tmp_path / "note.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize("size", [(64, 64), (65, 127), (1, 3), (20, 64)])
def test_pad_to_multiple_is_undone_by_crop_to(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    padded, original = pad_to_multiple(image, 64)
    assert padded.shape[-2] % 64 == 0 and padded.shape[-1] % 64 == 0
    assert torch.equal(crop_to(padded, original), image)


def test_pad_to_multiple_reflects_without_repeating_the_edge() -> None:
    row = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    padded, _ = pad_to_multiple(row, 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    padded, _ = pad_to_multiple(row[..., :2], 5)
    assert padded[0, 0, 0].tolist() == [0, 1, 0, 0, 0]


def test_resize_keeps_dtype_and_constants() -> None:
    image = torch.full((3, 10, 20), 77, dtype=torch.uint8)
    small = resize_short_side(image, 5)
    assert small.shape == (3, 5, 10) and small.dtype == torch.uint8
    assert small.unique().tolist() == [77]
    assert resize(torch.rand(2, 3, 8, 8), (4, 6)).shape == (2, 3, 4, 6)


def test_image_grid_places_rows_with_white_gaps() -> None:
    grid = image_grid([[torch.zeros(3, 4, 4), torch.zeros(3, 2, 2)], [torch.zeros(3, 3, 5)]], gap=1)
    assert grid.shape == (3, 4 + 1 + 3, 5 + 1 + 2)
    assert grid[:, :4, :4].max() == 0 and grid[:, 5:, :5].max() == 0
    assert grid[:, 4].min() == 1 and grid[:, 5:, 6:].min() == 1
    with pytest.raises(ValueError):
        image_grid([])


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*: not a regular file"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="input=.*/pipe: a pipe or a device"):
        find_photos(tmp_path / "pipe", tmp_path / "out")
    with pytest.raises(ValueError, match="/pipe: a pipe or a device"):
        list_images(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="none.png: no readable file .No such file"):
        read_image(tmp_path / "none.png")
