"""Files made by exiftool and ImageMagick, and what these read in the results."""

import json
import subprocess
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from open_supir.base.images import read_photo
from open_supir.base.images.write import encode_photo
from open_supir.inference.options import RestoreOptions
from open_supir.inference.records import encode_result
from tests.other_tools import MAGICK, needs_exiftool, needs_magick

SAID = {
    "IFD0:Artist": "Zoë Ångström", "IFD0:ImageDescription": "A bridge", "IFD0:Copyright": "CC BY",
    "ExifIFD:DateTimeOriginal": "2021:06:05 04:03:02", "ExifIFD:UserComment": "seen, twice",
    "ExifIFD:LensModel": "50 mm", "GPS:GPSLatitudeRef": "North", "GPS:GPSLatitude": 52.5,
    "XMP-dc:Creator": "Zoë Ångström", "XMP-xmp:Rating": 4, "XMP-lr:HierarchicalSubject": "a|b",
    "XMP-photoshop:City": "Łódź", "IPTC:Keywords": ["bridge", "river"], "IPTC:City": "Bergen",
}  # fmt: skip


SPACES = {  # red, green, blue and white; gamma
    "Adobe RGB": ([0.64, 0.33, 0.21, 0.71, 0.15, 0.06], [0.3127, 0.329], 2.2),
    "Display P3": ([0.68, 0.32, 0.265, 0.69, 0.15, 0.06], [0.3127, 0.329], 2.2),
    "ProPhoto": ([0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001], [0.3457, 0.3585], 1.8),
}


def profile_of(space: str) -> bytes:
    primaries, white, gamma = SPACES[space]
    points = [number for at in (0, 2, 4) for number in (*primaries[at : at + 2], 1.0)]
    return bytes(
        imagecodecs.cms_profile("rgb", whitepoint=[*white, 1.0], primaries=points, gamma=gamma)
    )


def run(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, check=True, text=True
    ).stdout


def tags(path: Path) -> dict[str, Any]:
    (found,) = json.loads(run("exiftool", "-j", "-G1", "-c", "%.6f", "-coordFormat", "%.6f", path))
    return found


def photograph(path: Path) -> Path:
    """Write a photograph that is wider than high."""
    y, x = np.mgrid[0:24, 0:36]
    pixels = np.stack([7 * x, 10 * y, 100 + x + y], 2).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def result(source: Path, target: Path, **options: Any) -> Path:
    """Write what a restoration that changes nothing gives."""
    photo = read_photo(source)
    format = target.suffix[1:].replace("tif", "tiff")
    target.write_bytes(
        encode_result(photo, photo.visible, RestoreOptions(format=format, **options), record={})  # type: ignore[arg-type]
    )
    return target


@needs_exiftool
@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("source", ["jpg", "png", "tif", "webp"])
def test_what_exiftool_wrote_it_reads_in_the_result(
    tmp_path: Path, source: str, format: str
) -> None:
    path = photograph(tmp_path / f"a.{source}")
    wanted = {k: v for k, v in SAID.items() if "IPTC" not in k or source != "webp"}
    lists = [f"-{k}={v}" for k, value in wanted.items() for v in np.atleast_1d(value)]
    turned = ["-n", "-IFD0:Orientation=6", "-XMP-tiff:Orientation=6"]
    run("exiftool", "-q", "-overwrite_original", *lists, path)
    run("exiftool", "-q", "-overwrite_original", *turned, path)
    before, after = tags(path), tags(result(path, tmp_path / f"b.{format}"))
    assert before.keys() >= wanted.keys()
    kept = {k for k in wanted if "IPTC" not in k or format != "webp"}
    assert {k: after.get(k) for k in kept} == {k: before[k] for k in kept}
    for key in ("IFD0:Orientation", "XMP-tiff:Orientation"):
        assert after.get(key, "Horizontal (normal)") == "Horizontal (normal)"
    size = after.get("File:ImageWidth") or after.get("PNG:ImageWidth") or after.get(
        "IFD0:ImageWidth") or after.get("RIFF:ImageWidth")  # fmt: skip
    assert size == 24  # it was 36 wide, lying on its side


@needs_exiftool
@pytest.mark.parametrize("source, format", [
    ("jpg", "png"), ("jpg", "jpg"), ("jpg", "webp"), ("jpg", "tif"), ("png", "jpg"),
])  # fmt: skip
def test_xmp_beyond_a_jpegs_packet_is_kept(tmp_path: Path, source: str, format: str) -> None:
    path, words = photograph(tmp_path / f"a.{source}"), " ".join(map(str, range(40_000)))
    (tmp_path / "words").write_text(words)
    run("exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=Short", path)
    run("exiftool", "-q", "-overwrite_original", f"-XMP-photoshop:History<={tmp_path}/words", path)
    parts = path.read_bytes().count(b"http://ns.adobe.com/xmp/extension/")
    assert parts > 2 or source == "png"
    after = tags(result(path, tmp_path / f"b.{format}"))
    assert after["XMP-dc:Title"] == "Short" and after["XMP-photoshop:History"] == words
    assert not [key for key in after if "Warning" in key]


@needs_exiftool
@needs_magick
def test_texts_and_resolution_of_a_png(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    made = tmp_path / "b.png"
    run(MAGICK, tmp_path / "a.png", "-units", "PixelsPerInch", "-density", "300x150",
        "-set", "Title", "Brücke", "-set", "Source", "scan 12", made)  # fmt: skip
    before, after = tags(made), tags(result(made, tmp_path / "c.png"))
    keys = ["PNG:Title", "PNG:Source", "PNG-pHYs:PixelsPerUnitX", "PNG-pHYs:PixelsPerUnitY",
            "PNG-pHYs:PixelUnits"]  # fmt: skip
    assert [after.get(key) for key in keys] == [before[key] for key in keys]
    assert before["PNG-pHYs:PixelsPerUnitX"] == 11811
    run(MAGICK, tmp_path / "a.png", "-units", "Undefined", "-density", "3x2", made)
    assert (found := tags(made))["PNG-pHYs:PixelUnits"] == "Unknown"
    after = tags(result(made, tmp_path / "c.png"))
    assert {k: after.get(k) for k in keys[2:]} == {k: found[k] for k in keys[2:]}


@needs_magick
@pytest.mark.parametrize("space, bits, nearest", [
    ("Adobe RGB", 8, 3), ("Adobe RGB", 16, 1), ("Display P3", 8, 3), ("ProPhoto", 16, 1),
])  # fmt: skip
def test_colours_in_a_profile_are_those_that_magick_converts(
    tmp_path: Path, space: str, bits: int, nearest: int
) -> None:
    """ImageMagick makes of the result the sRGB that the restorer gave (8 bits: rounded thrice)."""
    plain, source, kept = (tmp_path / name for name in ("plain.png", "source.tif", "kept.tif"))
    icc, srgb, found = (tmp_path / name for name in ("own.icc", "srgb.icc", "found.icc"))
    plain.write_bytes(encode_photo(read_photo(photograph(plain)), format="png"))
    icc.write_bytes(profile_of(space))
    run(MAGICK, plain, srgb)
    run(MAGICK, plain, "-profile", icc, "-depth", bits, source)
    photo = read_photo(source)
    changed = photo.visible * 0.6 + 0.2
    options = RestoreOptions(format="tiff", bits=bits)  # type: ignore[arg-type]
    kept.write_bytes(encode_result(photo, changed, options, record={}))
    run(MAGICK, kept, found)
    assert found.read_bytes() == icc.read_bytes()
    assert run(MAGICK, kept, "-format", "%z", "info:") == str(bits)
    shown = []
    for name, conversion in (("a.png", ["-profile", srgb]), ("b.png", [])):
        run(MAGICK, kept, *conversion, "-strip", "-depth", 8, tmp_path / name)
        shown.append(np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int))
    expected = torch.round(changed * 255).permute(1, 2, 0).numpy()
    assert np.abs(shown[0] - expected).max() <= nearest
    assert np.abs(shown[1] - expected).max() > 4  # it is not sRGB
