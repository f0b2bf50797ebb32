"""Write images: 8 or 16 bits, tagged sRGB, with a record of what made them inside."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from open_supir.base.files import write_bytes
from open_supir.base.images.colour import grey_profile, srgb_profile
from open_supir.base.images.read import Photo
from open_supir.base.images.tensors import to_unit

SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif"}
RECORD_KEY = "restoration"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
LUMA = (0.299, 0.587, 0.114)


def write_image(
    path: str | Path,
    image: Tensor,
    *,
    record: Mapping[str, Any] | None = None,
    quality: int = 95,
) -> None:
    """Write a (3, H, W) unit or uint8 image in the format of its suffix, whole or not at all.

    The record goes where `encode_photo` puts it.
    """
    path = Path(path)
    formats = {suffix: name for name, suffix in SUFFIXES.items()} | {".jpeg": "jpg"}
    if path.suffix.lower() not in formats:
        known = ", ".join(formats)
        raise ValueError(f"{path}: cannot write suffix {path.suffix!r}; known: {known}")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"{path}: cannot write an image of shape {tuple(image.shape)}")
    unit = image.detach().float() if image.is_floating_point() else to_unit(image)
    content = encode_photo(
        Photo(rgb=unit), format=formats[path.suffix.lower()], quality=quality, record=record
    )
    write_bytes(path, content, fsync=False)


def encode_photo(
    photo: Photo,
    *,
    format: str,
    bits: int = 8,
    quality: int = 95,
    record: Mapping[str, Any] | None = None,
) -> bytes:
    """Encode an image with its record: the content of a file.

    The record is JSON: PNG text under `restoration`, TIFF image description, EXIF user comment of
    JPEG and WebP. JPEG has no alpha: the image is laid over white.

    Args:
        photo: What to write; its own `bits` is not looked at.
        format: png, jpg, webp or tiff.
        bits: A channel; 16 for png and tiff only.
        quality: Of jpg and webp; webp is lossless at 100.
        record: Anything that JSON holds; None writes none.
    """
    text = None if record is None else json.dumps(record, sort_keys=True)
    pixels = _pixels(photo, bits, with_alpha=format != "jpg")
    if format == "tiff":
        return _tiff(pixels, text)
    if bits == 16:
        return _deep_png(pixels, photo.exif, text)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    is_grey = photo.is_grey and format != "webp"  # which has no grey
    options: dict[str, Any] = {"icc_profile": grey_profile() if is_grey else srgb_profile()}
    if format == "png":
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_itxt(RECORD_KEY, text)
        options |= {"format": "PNG", "pnginfo": info, "exif": photo.exif or None}
    elif format == "jpg":
        options |= {"format": "JPEG", "quality": quality, "exif": _exif(photo.exif, text)}
        options |= {} if photo.is_grey else {"subsampling": 0}
    else:
        exact = {"lossless": True, "exact": True} if quality == 100 else {"quality": quality}
        options |= {"format": "WEBP", "exif": _exif(photo.exif, text), **exact}
    file = io.BytesIO()
    picture.save(file, **{k: v for k, v in options.items() if v is not None})
    return file.getvalue()


def _pixels(photo: Photo, bits: int, *, with_alpha: bool) -> np.ndarray:
    """Return (H, W, C) uint8 or uint16."""
    colour = photo.rgb
    if photo.alpha is not None and not with_alpha:
        colour = colour * photo.alpha + (1 - photo.alpha)
    channels = [_grey(colour)] if photo.is_grey else list(colour)
    if photo.alpha is not None and with_alpha:
        channels.append(photo.alpha[0])
    levels, dtype = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    out = np.empty((*colour.shape[-2:], len(channels)), dtype=dtype)
    for index, channel in enumerate(channels):  # a float copy of one channel at a time
        out[..., index] = (channel * levels).round_().clamp_(0, levels).cpu().numpy()
    return out


def _grey(rgb: Tensor) -> Tensor:
    first = rgb[0]
    if bool((rgb == first).all()):  # equal channels are grey already, to the last bit
        return first
    return sum(channel * weight for channel, weight in zip(rgb, LUMA, strict=True))  # type: ignore[return-value]


def _exif(kept: bytes, text: str | None) -> bytes | None:
    if text is None:
        return kept or None
    exif = Image.Exif()
    if kept:
        exif.load(kept)
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"ASCII\0\0\0" + text.encode("ascii")
    content = exif.tobytes()
    if len(content) > 65000:  # a JPEG segment holds no more; the record goes before the rest
        return _exif(b"", text[:60000])
    return content


def _deep_png(pixels: np.ndarray, exif: bytes, text: str | None) -> bytes:
    """Return a 16-bit PNG: imagecodecs writes the pixels, and no text or profile, so we do."""
    import imagecodecs

    content = bytes(imagecodecs.png_encode(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    end = 8 + 25  # signature and IHDR
    chunks = b""
    if text is not None:
        chunks += _chunk(b"iTXt", RECORD_KEY.encode() + b"\0\0\0\0\0" + text.encode())
    icc = srgb_profile() if pixels.shape[-1] >= 3 else grey_profile()
    chunks += _chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(icc))
    if exif:
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return content[:end] + chunks + content[end:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(pixels: np.ndarray, text: str | None) -> bytes:
    import tifffile

    file = io.BytesIO()
    channels = pixels.shape[-1]
    tifffile.imwrite(
        file,
        pixels[..., 0] if channels == 1 else pixels,
        photometric="minisblack" if channels <= 2 else "rgb",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=srgb_profile() if channels >= 3 else grey_profile(),
        description=text,
        metadata=None,
        software=False,
    )
    return file.getvalue()
