"""Photographs in and out: depth, alpha, greyness, orientation, colour profiles, records."""

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from open_supir.base.images import Photo, read_photo
from open_supir.base.images.colour import grey_profile
from open_supir.base.images.metadata import Metadata
from open_supir.base.images.write import encode_photo
from open_supir.inference.options import RestoreOptions
from open_supir.inference.records import encode_result

imagecodecs = pytest.importorskip("imagecodecs")
RANDOM = np.random.default_rng(0)


def _deep(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 65536, shape, dtype=np.uint16)


def _values(photo: Photo, levels: int) -> np.ndarray:
    return np.rint(photo.rgb.numpy().astype(np.float64) * levels).astype(int)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_read_to_the_last(tmp_path: Path, channels: int, kind: str) -> None:
    pixels = _deep(7, 5, channels)
    if channels in (2, 4):
        pixels[..., -1] |= 1  # nothing is wholly hidden
    path = tmp_path / f"a.{kind}"
    plain = pixels[..., 0] if channels == 1 else pixels
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(plain))
    else:
        extra: dict[str, Any] = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
        model = "minisblack" if channels < 3 else "rgb"
        tifffile.imwrite(path, plain, photometric=model, planarconfig="contig", **extra)
    photo = read_photo(path)
    assert photo.bits == 16 and photo.is_grey == (channels < 3)
    colours = 1 if channels < 3 else 3
    read = _values(photo, 65535).transpose(1, 2, 0)[..., :colours]
    assert np.array_equal(read, pixels[..., :colours])
    if channels in (2, 4):
        assert photo.alpha is not None
        assert np.array_equal(np.rint(photo.alpha[0].numpy() * 65535), pixels[..., -1])


WRITTEN = [("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16), ("webp", 8)]


@pytest.mark.parametrize("format, bits", WRITTEN)
@pytest.mark.parametrize("is_grey", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_what_is_written_is_read_back(
    tmp_path: Path, format: str, bits: int, is_grey: bool, has_alpha: bool
) -> None:
    """To the last bit; a lossless WebP of grey comes back as equal channels."""
    levels = 255 if bits == 8 else 65535
    rgb = torch.from_numpy(RANDOM.integers(0, levels + 1, (1 if is_grey else 3, 6, 9)) / levels)
    alpha = torch.from_numpy(RANDOM.integers(1, levels, (1, 6, 9)) / levels).float()
    photo = Photo(
        rgb=rgb.float().expand(3, -1, -1), alpha=alpha if has_alpha else None, is_grey=is_grey
    )
    content = encode_photo(photo, format=format, bits=bits, quality=100, record={"seed": 5})
    path = tmp_path / "out.bin"
    path.write_bytes(content)
    back = read_photo(path)
    assert back.is_grey == (is_grey and format != "webp") and back.bits == bits
    assert np.array_equal(_values(back, levels), _values(photo, levels))
    if has_alpha:
        assert back.alpha is not None
        torch.testing.assert_close(back.alpha, alpha, atol=1e-7, rtol=0)
    else:
        assert back.alpha is None


@pytest.mark.parametrize("format, bits", [*WRITTEN, ("jpg", 8)])
def test_record_profile_and_exif_are_inside(format: str, bits: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    photo = Photo(rgb=torch.rand(3, 8, 8), metadata=Metadata(exif=exif.tobytes()[6:]))
    content = encode_photo(photo, format=format, bits=bits, record={"prompt": "caf\u00e9 \u732b"})
    if format == "tiff":
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            tags = file.pages.first.tags
            packet, icc, maker = (tags.valueof(tag) for tag in (700, 34675, 271))
    else:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            icc, maker = image.info["icc_profile"], image.getexif()[0x010F]
            packet = image.info.get("xmp")
            text = image.info.get("restoration")
    assert maker == "a maker"
    if format != "png":
        (element,) = ElementTree.fromstring(packet).iter("{urn:open-supir:}restoration")
        text = element.text
    assert json.loads(text) == {"prompt": "caf\u00e9 \u732b"}
    assert b"sRGB" in icc or ImageCms.ImageCmsProfile(io.BytesIO(icc))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, deep: bool) -> None:
    """Against Pillow's transposition of the 8-bit image."""
    pixels = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    path = tmp_path / "a.png"
    if deep:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels.astype(np.uint16) * 257, photometric="rgb",
                         extratags=[(274, 3, 1, orientation, True)])  # fmt: skip
    else:
        path.write_bytes(file.getvalue())
    photo = read_photo(path)
    assert np.array_equal(_values(photo, 255).transpose(1, 2, 0), upright)
    (tmp_path / "b.png").write_bytes(encode_photo(photo, format="png"))
    assert Image.open(tmp_path / "b.png").getexif().get(0x0112, 1) == 1


def test_hidden_colours_do_not_reach_the_networks(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 255  # red, and transparent
    pixels[:2] = (0, 0, 200, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.alpha is not None and photo.alpha[0, 3].max() == 0
    assert photo.visible[0].max() == 0
    assert (photo.visible[2] * 255).round().unique().tolist() == [200]


@pytest.mark.parametrize("format, bits", [("png", 8), ("png", 16), ("tiff", 8), ("webp", 8)])
def test_hidden_colours_are_those_of_the_input(tmp_path: Path, format: str, bits: int) -> None:
    pixels = RANDOM.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(RANDOM.random((8, 8)) < 0.5, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    options = RestoreOptions(format=format, bits=bits, quality=100)  # type: ignore[arg-type]
    (tmp_path / "b").write_bytes(encode_result(photo, photo.visible, options, record={}))
    assert np.array_equal(_values(read_photo(tmp_path / "b"), 255), _values(photo, 255))


def test_grey_palettes_are_grey(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey).quantize(16).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([grey, grey, 255 - grey])).quantize(16).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "a.png").is_grey
    assert not read_photo(tmp_path / "b.png").is_grey


@pytest.mark.parametrize("spread, is_grey", [(0, True), (2, True), (12, False)])
def test_scans_of_grey_are_grey_if_asked(tmp_path: Path, spread: int, is_grey: bool) -> None:
    grey = RANDOM.integers(20, 230, (16, 16, 1))
    scan = (grey + RANDOM.integers(-spread, spread + 1, (16, 16, 3))).astype(np.uint8)
    Image.fromarray(scan).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    for grey_option, expected in (("file", "RGB"), ("auto", "L" if is_grey else "RGB")):
        options = RestoreOptions(grey=grey_option)  # type: ignore[arg-type]
        content = encode_result(photo, photo.rgb, options, record={})
        assert Image.open(io.BytesIO(content)).mode == expected


def test_deep_colours_are_converted_to_srgb(tmp_path: Path) -> None:
    """A file in a wide gamut must change, as its 8-bit twin does through Pillow."""
    profile = imagecodecs.cms_profile(
        "rgb", whitepoint=[0.3127, 0.3290, 1.0],
        primaries=[0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1], gamma=2.2,
    )  # fmt: skip
    eight = RANDOM.integers(110, 160, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(eight).save(tmp_path / "eight.png", icc_profile=profile)
    tifffile.imwrite(tmp_path / "deep.tif", eight.astype(np.uint16) * 257, photometric="rgb",
                     iccprofile=profile)  # fmt: skip
    shallow, deep = (read_photo(tmp_path / name).rgb for name in ("eight.png", "deep.tif"))
    assert (shallow * 255 - torch.from_numpy(eight).permute(2, 0, 1)).abs().max() > 5
    torch.testing.assert_close(deep, shallow, atol=1.5 / 255, rtol=0)


def test_only_the_first_frame_is_read_and_the_user_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        path = tmp_path / f"a.{suffix}"
        more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
        frames[0].save(path, lossless=True, **more)
        photo = read_photo(path)
        assert photo.rgb[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
        assert any("first of several" in note for note in photo.notes), suffix


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, 7.0])
def test_floating_point_files_must_hold_colours(tmp_path: Path, value: float) -> None:
    pixels = np.full((4, 4, 3), 0.5, dtype=np.float32)
    tifffile.imwrite(tmp_path / "good.tif", pixels, photometric="rgb")
    assert read_photo(tmp_path / "good.tif").rgb.mean().item() == pytest.approx(0.5, abs=1e-5)
    pixels[1, 1, 1] = value
    tifffile.imwrite(tmp_path / "bad.tif", pixels, photometric="rgb")
    with pytest.raises(ValueError, match="not numbers|must be in"):
        read_photo(tmp_path / "bad.tif")


def test_grey_is_tagged_with_the_curve_of_srgb() -> None:
    """lcms finds nothing to convert; where there is only RGB the profile is RGB too."""
    grey = torch.linspace(0, 1, 256).expand(3, 1, -1)
    for format, bits in (*WRITTEN, ("jpg", 8)):
        photo = Photo(rgb=grey, is_grey=True)
        content = encode_photo(photo, format=format, bits=bits, quality=100)
        if format == "tiff":
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                icc = file.pages.first.tags.valueof(34675)
        else:
            icc = Image.open(io.BytesIO(content)).info["icc_profile"]
        assert icc[16:20] == (b"RGB " if format == "webp" else b"GRAY")
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    source = ImageCms.ImageCmsProfile(io.BytesIO(grey_profile()))
    srgb = ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(ramp, source, srgb, outputMode="RGB")
    assert np.array_equal(np.asarray(shown)[0, :, 1], np.arange(256))


def test_alpha_becomes_white_in_a_jpeg() -> None:
    photo = Photo(rgb=torch.zeros(3, 8, 8), alpha=torch.zeros(1, 8, 8))
    content = encode_photo(photo, format="jpg")
    assert np.asarray(Image.open(io.BytesIO(content))).min() > 250
