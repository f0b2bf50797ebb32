"""Depths, channels and colour descriptions as scanners and cameras write them, with right values.

Files are made here by tifffile and from PNG chunks; expected pixels follow from the formats.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from open_supir.base.images import read_image, read_photo
from open_supir.base.images.colour import PRIMARIES, srgb_profile

RANDOM = np.random.default_rng(0)
SIZE = (6, 9)


def levels(path: Path, full: int = 65535) -> np.ndarray:
    """Return (H, W, C) as levels of 0 to `full`."""
    photo = read_photo(path)
    rgb = photo.rgb[:1] if photo.is_grey else photo.rgb
    return np.rint(rgb.numpy().astype(np.float64) * full).transpose(1, 2, 0)


def png(path: Path, pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> Path:
    """Write a PNG with chunks after its header."""
    data = bytes(imagecodecs.png_encode(pixels))
    made = b""
    for name, body in chunks:
        made += struct.pack(">I", len(body)) + name + body
        made += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data[:33] + made + data[33:])
    return path


def srgb(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: from light to values."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("model", ["miniswhite", "minisblack", "rgb"])
def test_white_is_the_largest_value_of_a_depth(tmp_path: Path, bits: int, model: str) -> None:
    full = 2**bits - 1
    pixels = RANDOM.integers(0, full + 1, (*SIZE, 3) if model == "rgb" else SIZE, dtype=np.uint16)
    pixels.flat[:2] = 0, full
    kind: dict[str, Any] = {"bitspersample": bits} if bits < 16 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=model, **kind)
    light = (full - pixels if model == "miniswhite" else pixels) / full
    expected = np.rint(light * 65535).reshape(*SIZE, -1)
    assert np.array_equal(levels(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("model", ["miniswhite", "minisblack", "rgb"])
def test_depths_below_eight_bits_come_out_as_eight(tmp_path: Path, bits: int, model: str) -> None:
    if bits == 1 and model == "rgb":
        pytest.skip("tifffile does not write it")
    full = 2**bits - 1
    pixels = RANDOM.integers(0, full + 1, (*SIZE, 3) if model == "rgb" else SIZE, dtype=np.uint8)
    pixels.flat[:2] = 0, full
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=model, bitspersample=bits)
    light = (full - pixels if model == "miniswhite" else pixels) / full
    expected = np.rint(light * 255).reshape(*SIZE, -1)
    assert np.array_equal(levels(tmp_path / "a.tif", 255), expected)
    assert read_photo(tmp_path / "a.tif").bits == 8


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [["unspecified"], ["unspecified", "unassalpha"]])
def test_an_unspecified_channel_is_no_transparency(
    tmp_path: Path, kind: type, extra: list[str]
) -> None:
    """Such as a scanner's infrared; alpha may come after it."""
    full = np.iinfo(kind).max
    pixels = RANDOM.integers(1, full, (*SIZE, 3 + len(extra)), dtype=kind)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=extra)
    photo = read_photo(tmp_path / "a.tif")
    assert np.array_equal(levels(tmp_path / "a.tif", full), pixels[..., :3])
    assert photo.bits == 8 * pixels.itemsize and any("left out" in note for note in photo.notes)
    if len(extra) == 1:
        assert photo.alpha is None
    else:
        assert photo.alpha is not None
        assert np.array_equal(np.rint(photo.alpha[0].numpy() * full), pixels[..., 4])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_associated_alpha_is_divided_out(tmp_path: Path, kind: type) -> None:
    full = np.iinfo(kind).max
    straight = RANDOM.integers(0, full + 1, (*SIZE, 3), dtype=kind)
    alpha = RANDOM.integers(full // 2, full + 1, SIZE, dtype=kind)
    stored = np.rint(straight * (alpha[..., None] / full)).astype(kind)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.dstack([stored, alpha]),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    error = np.abs(levels(tmp_path / "a.tif", full) - straight)
    assert error.max() <= 2  # half a level of rounding, enlarged at most twice, and rounded again


def test_cmyk_of_sixteen_bits_is_ink_over_white(tmp_path: Path) -> None:
    inks = RANDOM.integers(0, 65536, (*SIZE, 4), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    light = 1 - inks / 65535
    expected = np.rint(light[..., :3] * light[..., 3:] * 65535)
    assert np.array_equal(levels(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_is_converted_by_its_profile(tmp_path: Path, kind: type) -> None:
    """A linear profile makes middle grey light; the darkest levels are right too."""
    full = np.iinfo(kind).max
    pixels = np.linspace(0, full, SIZE[0] * SIZE[1]).astype(kind).reshape(SIZE)
    icc = bytes(imagecodecs.cms_profile("gray", whitepoint=[0.3127, 0.329, 1.0], gamma=1.0))
    png(tmp_path / "a.png", pixels, (b"iCCP", b"linear\0\0" + zlib.compress(icc)))
    found = levels(tmp_path / "a.png", full)[..., 0]
    expected = srgb(pixels / full) * full
    bound = 0.51 if kind is np.uint8 else 0.1 * 257  # rounding, and a tenth of an 8-bit level
    assert np.abs(found - expected).max() <= bound
    assert read_photo(tmp_path / "a.png").is_grey


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_png_gamma_is_applied(tmp_path: Path, kind: type, shape: tuple[int, ...]) -> None:
    full = np.iinfo(kind).max
    pixels = np.linspace(0, full, np.prod(shape)).astype(kind).reshape(shape)
    png(tmp_path / "a.png", pixels, (b"gAMA", struct.pack(">I", 100_000)))
    expected = (srgb(pixels / full) * full).reshape(*SIZE, -1)
    # half a level is rounding; the table of a profile and 8-bit arithmetic take the rest
    assert np.abs(levels(tmp_path / "a.png", full) - expected).max() <= full / 255


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"gAMA", struct.pack(">I", 45455))],  # what writers of sRGB say
        [(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")],
        [(b"gAMA", struct.pack(">I", 100_000)), (b"cICP", bytes([1, 13, 0, 1]))],
    ],
)
def test_png_that_says_srgb_is_left_as_it_is(
    tmp_path: Path, chunks: list[tuple[bytes, bytes]]
) -> None:
    pixels = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    png(tmp_path / "a.png", pixels, *chunks)
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), pixels)


def xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """Return the matrix from light of red, green, blue to CIE XYZ (Lindbloom)."""
    points = np.array(primaries).reshape(4, 2)
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


def test_png_of_display_p3_is_converted(tmp_path: Path) -> None:
    """By cICP, and the same by cHRM; colours inside of sRGB only, so that nothing is cut off."""
    pixels = RANDOM.integers(110, 150, (*SIZE, 3), dtype=np.uint8)
    light = ((pixels / 255 + 0.055) / 1.055) ** 2.4
    matrix = np.linalg.solve(xyz(PRIMARIES[1]), xyz(PRIMARIES[12]))
    expected = srgb(light @ matrix.T) * 255
    assert np.abs(expected - pixels).max() > 5
    points = PRIMARIES[12]
    order = (*points[6:], *points[:6])  # cHRM has white first
    chrm = struct.pack(">8I", *(round(100_000 * value) for value in order))
    for chunks in (
        [(b"cICP", bytes([12, 13, 0, 1]))],
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", chrm)],
    ):
        png(tmp_path / "a.png", pixels, *chunks)
        assert np.abs(levels(tmp_path / "a.png", 255) - expected).max() <= 1


def test_png_of_high_dynamic_range_is_refused(tmp_path: Path) -> None:
    png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint16), (b"cICP", bytes([9, 16, 0, 1])))
    with pytest.raises(ValueError, match="high dynamic range"):
        read_photo(tmp_path / "a.png")


def test_png_with_long_texts_and_profiles_is_read(tmp_path: Path) -> None:
    text = b"Comment\0\0" + zlib.compress(b"x" * (3 << 20))
    pixels = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    png(tmp_path / "a.png", pixels, (b"zTXt", text))
    assert np.array_equal(levels(tmp_path / "a.png", 255), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_of_eight_bits_is_turned_once(tmp_path: Path, orientation: int) -> None:
    pixels = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=_oriented(orientation))
    turned, reference = (levels(tmp_path / name, 255) for name in ("a.tif", "a.png"))
    assert np.array_equal(turned, reference)


def _oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_png_with_a_profile_of_megabytes_is_read(tmp_path: Path) -> None:
    """Such as one with large tables; here sRGB with a padded end, so that nothing changes."""
    icc = srgb_profile() + RANDOM.bytes(3 << 20)
    icc = len(icc).to_bytes(4, "big") + icc[4:]
    for kind in (np.uint8, np.uint16):
        pixels = RANDOM.integers(0, 256, (*SIZE, 3)).astype(kind)
        png(tmp_path / "a.png", pixels, (b"iCCP", b"large\0\0" + zlib.compress(icc)))
        assert np.array_equal(levels(tmp_path / "a.png", np.iinfo(kind).max), pixels)
