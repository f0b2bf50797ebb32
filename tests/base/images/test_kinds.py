"""Kinds of files, told by content; AVIF, HEIC and JPEG XL, where their libraries are installed."""

import importlib.util
import io
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from open_supir.base.images import list_images, read_photo
from open_supir.base.images.kinds import jxl_size, kind_of

SIZE = (20, 28)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), dtype=np.uint8)
SMOOTH = np.linspace(0, 255, 20 * 28 * 3).astype(np.uint8).reshape(20, 28, 3)


def encoded(format: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_kinds_are_told_by_the_first_bytes(format: str) -> None:
    """Pillow's own files."""
    assert kind_of(encoded(format)[:32]) == format.lower()


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"BM is how this text begins, and it goes on",
        b"\0\0\0\x1cftypisom\0\0\0\0isomiso2avc1mp41",  # a film
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",  # Canon's raw format
        b"RIFF\0\0\0\0WAVEfmt ",
        "text".encode("utf-16"),
        b"%PDF-1.4",
    ],
)
def test_other_files_are_none(start: bytes) -> None:
    assert kind_of(start.ljust(32, b" ")[:32] if start else start) == ""


@pytest.mark.parametrize("shape", [(20, 28), (300, 7), (8, 64), (1000, 1000), (75, 100), (90, 160)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(shape, dtype) -> None:
    """Small and large sides, every way of writing them, with a container (16 bits) and without."""
    data = imagecodecs.jpegxl_encode(np.zeros((*shape, 3), dtype), lossless=True)
    assert jxl_size(data) == shape
    with pytest.raises(ValueError, match="ends before its size"):
        jxl_size(data[:3] if data.startswith(b"\xff") else data[:12])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_xl_is_read_to_the_bit(tmp_path: Path, dtype, channels: int) -> None:
    pixels = PIXELS[..., :channels].astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = tmp_path / "a.jxl"
    held = pixels[..., 0] if channels == 1 else pixels
    path.write_bytes(imagecodecs.jpegxl_encode(held, lossless=True))
    photo = read_photo(path)
    full = np.iinfo(dtype).max
    read = (photo.rgb.permute(1, 2, 0).numpy() * full).round()
    assert (read == pixels[..., : min(channels, 3)]).all()
    assert photo.bits == pixels.itemsize * 8 and photo.is_grey == (channels == 1)
    assert (photo.alpha is not None) == (channels == 4)
    with pytest.raises(ValueError, match="28x20 pixels, limit 500"):
        read_photo(path, max_pixels=500)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        read_photo(path)


def test_avif_is_read_whatever_its_name(tmp_path: Path) -> None:
    """Lossy: five levels at quality 100, of Pillow's own decoding none."""
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("AVIF", quality=100))
    reference = np.asarray(Image.open(path).convert("RGB"))
    read = (read_photo(path).rgb.permute(1, 2, 0).numpy() * 255).round()
    assert (read == reference).all() and np.abs(read - SMOOTH).max() <= 5


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="no pillow-heif")
def test_heic_is_read_where_its_library_is_installed(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(tmp_path / "a.heic", quality=100)
    read = (read_photo(tmp_path / "a.heic").rgb.permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(read - SMOOTH).max() <= 5
    assert list_images(tmp_path) == [tmp_path / "a.heic"]


def test_heic_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    caplog.set_level("INFO")
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf".ljust(100, b"\0")
    for name in ("a.heic", "b.HEIC", "c.jpg"):
        (tmp_path / name).write_bytes(heic)
    with pytest.raises(ValueError, match="HEIC, which needs pip install pillow-heif"):
        read_photo(tmp_path / "c.jpg")
    assert list_images(tmp_path) == [tmp_path / "c.jpg"]
    assert "2 files left out: .heic 2 (pip install pillow-heif)" in caplog.text


def test_a_raw_photograph_is_named_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its bytes may be those of a TIFF, whose first image is the small preview."""
    caplog.set_level("INFO")
    develop = "raw: develop it to TIFF or PNG first"
    Image.fromarray(SMOOTH).save(tmp_path / "a.tif")
    raws = {"b.NEF": (tmp_path / "a.tif").read_bytes(), "c.cr2": b"II*\0\x10\0\0\0CR\2\0",
            "d.cr3": b"\0\0\0\x18ftypcrx "}  # fmt: skip
    for name, content in raws.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot be read .{develop}"):
            read_photo(tmp_path / name)
        with pytest.raises(ValueError, match=f"not an image file; {develop}"):
            list_images(tmp_path / name)
    Image.fromarray(SMOOTH).save(tmp_path / "e.dng", "PNG")
    assert list_images(tmp_path) == [tmp_path / "a.tif", tmp_path / "e.dng"]
    assert f"3 files left out: .cr2 1 ({develop})" in caplog.text
    assert read_photo(tmp_path / "e.dng").rgb.shape == (3, *SMOOTH.shape[:2])


def test_only_the_first_bytes_tell_the_kind() -> None:
    """Compressed data may hold the name of another kind by chance."""
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf".ljust(400, b"\0")
    assert kind_of(heic + b"avif") == "heic"


def test_mpo_is_the_first_of_its_jpegs(tmp_path: Path) -> None:
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(tmp_path / "a.mpo") as image:
        assert image.format == "MPO"
        reference = np.asarray(image.convert("RGB"))
    read = (read_photo(tmp_path / "a.mpo").rgb.permute(1, 2, 0).numpy() * 255).round()
    assert (read == reference).all()


def test_pillows_own_limit_does_not_stop_what_max_pixels_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it refuses more than twice as many
    assert read_photo(tmp_path / "a.png").rgb.shape == (3, *SIZE)
