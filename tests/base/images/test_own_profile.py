"""Results are in the profile of the photograph, with colours that sRGB cannot hold."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from open_supir.base.images import read_photo
from open_supir.base.images.colour import PRIMARIES
from open_supir.inference.options import RestoreOptions
from open_supir.inference.records import encode_result

RANDOM = np.random.default_rng(0)
SIZE = (12, 18)


@cache  # a profile holds the time when it was made
def adobe() -> bytes:
    """Return a profile with the primaries of Adobe RGB (1998)."""
    points = [0.64, 0.33, 1.0, 0.21, 0.71, 1.0, 0.15, 0.06, 1.0]
    white = [*PRIMARIES[1][6:], 1.0]
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=points, gamma=2.2))


@cache
def grey() -> bytes:
    """Return a profile of linear grey."""
    return bytes(imagecodecs.cms_profile("gray", whitepoint=[0.3127, 0.329, 1.0], gamma=1.0))


def written(tmp_path: Path, kind: type, icc: bytes, pixels: np.ndarray) -> Path:
    path = tmp_path / "a.tif"
    model = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels.astype(kind), photometric=model, iccprofile=icc, metadata=None)
    return path


def read_back(content: bytes) -> tuple[np.ndarray, bytes]:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return file.asarray(), file.pages.first.tags.valueof(34675)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("space", ["adobe", "grey"])
def test_what_is_not_restored_keeps_its_own_values(tmp_path: Path, kind: type, space: str) -> None:
    """Also the colours outside of sRGB, of which random pixels have many."""
    icc, shape = (adobe(), (*SIZE, 3)) if space == "adobe" else (grey(), SIZE)
    pixels = RANDOM.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
    photo = read_photo(written(tmp_path, kind, icc, pixels))
    content = encode_result(photo, photo.visible, RestoreOptions(format="tiff"), record={})
    values, profile = read_back(content)
    assert profile == icc and values.dtype == kind
    assert np.array_equal(values, pixels)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_result_is_converted_to_the_profile(tmp_path: Path, scale: int) -> None:
    """lcms gets from the file what the restorer gave; the input here is all inside of sRGB."""
    pixels = RANDOM.integers(118, 138, (*SIZE, 3))
    photo = read_photo(written(tmp_path, np.uint8, adobe(), pixels))
    sample = 0.4 + 0.2 * torch.rand(3, SIZE[0] * scale, SIZE[1] * scale)
    content = encode_result(photo, sample, RestoreOptions(format="png"), record={})
    with Image.open(io.BytesIO(content)) as image:
        icc = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        shown = ImageCms.profileToProfile(image, icc, ImageCms.createProfile("sRGB"))
    expected = sample.permute(1, 2, 0).numpy() * 255
    plain = np.asarray(Image.open(io.BytesIO(content)))
    assert np.abs(plain - expected).max() > 4  # it is not sRGB
    assert np.abs(np.asarray(shown) - expected).max() <= 2.5  # rounded three times at 8 bits


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
def test_srgb_is_given_where_it_is_asked_for(tmp_path: Path, format: str) -> None:
    pixels = RANDOM.integers(0, 256, (*SIZE, 3))
    photo = read_photo(written(tmp_path, np.uint8, adobe(), pixels))
    for profile, is_own in (("keep", True), ("srgb", False)):
        options = RestoreOptions(format=format, profile=profile)  # type: ignore[arg-type]
        content = encode_result(photo, photo.visible, options, record={})
        if format == "tiff":
            icc = read_back(content)[1]
        else:
            icc = Image.open(io.BytesIO(content)).info["icc_profile"]
        assert (icc == adobe()) == is_own


def test_a_profile_without_a_way_back_gives_srgb_and_is_named(tmp_path: Path) -> None:
    """One for CMYK on RGB pixels, which is ignored in reading too."""
    icc = bytearray(adobe())
    icc[16:20] = b"CMYK"
    photo = read_photo(written(tmp_path, np.uint8, bytes(icc), np.zeros((*SIZE, 3))))
    assert photo.own is None and any("sRGB" in note for note in photo.notes)


def test_gamma_of_a_png_is_kept_as_a_profile(tmp_path: Path) -> None:
    """The same bytes each time; only the right gamma gives the shades back."""
    pixels = RANDOM.integers(0, 256, SIZE, dtype=np.uint8)
    gamma = b"gAMA" + (100_000).to_bytes(4, "big")
    chunk = (4).to_bytes(4, "big") + gamma + zlib.crc32(gamma).to_bytes(4, "big")
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue()[:33] + chunk + data.getvalue()[33:])
    photo = read_photo(tmp_path / "a.png")
    content = encode_result(photo, photo.visible, RestoreOptions(), record={})
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), pixels)
        icc = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        srgb = ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image, icc, srgb, outputMode="RGB", flags=256)
    expected = np.rint(photo.rgb[0].numpy() * 255)
    assert np.abs(np.asarray(shown)[..., 1] - expected).max() <= 1
    assert image.info["icc_profile"][24:30] == b"\x07\xd0\x00\x01\x00\x01"
    assert image.info["icc_profile"][68:80].hex() == "0000f6d6000100000000d32d"  # D50


def two_tables() -> bytes:
    """Return a profile (ICC.1:2001-04) whose perceptual table darkens; for reading only."""

    def table(brightest: int) -> bytes:
        corners = [(brightest * (r + g + b) // 3, 128, 128) for r, g, b in np.ndindex(2, 2, 2)]
        grid, ramp = bytes(np.uint8(corners)), bytes(range(256)) * 3
        unit = struct.pack(">9i", *(np.eye(3, dtype=int).ravel() << 16).tolist())
        return b"mft1\0\0\0\0\x03\x03\x02\0" + unit + ramp + grid + ramp

    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"T\0" + bytes(80)
    tags = {b"desc": name, b"wtpt": white, b"A2B0": table(127), b"A2B1": table(255)}
    head, body = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        head += key + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size, version = struct.pack(">I", 128 + len(head + body)), struct.pack(">I", 0x02400000)
    kind = b"mntrRGB Lab " + bytes(12) + b"acsp" + bytes(28) + white[8:] + bytes(48)
    return size + b"lcms" + version + kind + head + body


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colours_are_converted_by_the_intent_that_is_asked_for(tmp_path: Path, kind: type) -> None:
    """The expected values are Pillow's, by its own binding of lcms; 8 bits round to a level."""
    icc, pixels = two_tables(), np.full((*SIZE, 3), np.iinfo(kind).max * 0.8)
    path, found = written(tmp_path, kind, icc, pixels), []
    for intent in ("perceptual", "relative"):
        given = Image.new("RGB", (1, 1), (204, 204, 204))
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        number = ImageCms.Intent(("perceptual", "relative").index(intent))
        expected = ImageCms.profileToProfile(given, source, target, number, "RGB")
        photo = read_photo(path, intent=intent)  # type: ignore[arg-type]
        found.append(photo.rgb[:, 0, 0] * 255)
        assert (found[-1] - torch.tensor(expected.getpixel((0, 0)))).abs().max() <= 1
    assert (found[1] - found[0]).min() > 50
