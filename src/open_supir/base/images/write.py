"""Write images: 8 or 16 bits, tagged sRGB, with a record of what made them inside."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from open_supir.base.files import write_bytes
from open_supir.base.images import exif
from open_supir.base.images.colour import grey_profile, srgb_profile
from open_supir.base.images.metadata import (
    COMMENT,
    EXIF_HEADER,
    XMP_TEXT,
    Metadata,
    photoshop_resource,
    prepared,
    raw_profile,
)
from open_supir.base.images.read import Photo
from open_supir.base.images.tensors import to_unit
from open_supir.base.images.xmp import extended

SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif"}
MAX_SIDES = {"webp": 16383, "jpg": 65500}  # pixels; the libraries' limits
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

    The record is JSON: PNG text under `restoration`, else the XMP property `restoration` in the
    namespace `urn:open-supir:`. JPEG has no alpha: the image is laid over white. What a format
    cannot hold of the metadata is left out; see `left_out`.

    Args:
        photo: What to write; its own `bits` is ignored.
        format: png, jpg, webp or tiff.
        bits: Per channel; 16 only for png and tiff.
        quality: For jpg and webp; webp is lossless at 100.
        record: Anything that JSON can hold; None writes no record.
    """
    if photo.own is not None and (photo.own.colour.shape[-1] == 1) != photo.is_grey:
        photo = replace(photo, own=None)
    if photo.is_grey and format == "webp":  # which has RGB only
        photo = replace(photo, own=None)
    pixels = _pixels(photo, bits, with_alpha=format != "jpg")
    icc = grey_profile() if photo.is_grey and format != "webp" else srgb_profile()
    icc = icc if photo.own is None else photo.own.icc
    is_srgb, text = (
        photo.own is None,
        None if record is None else json.dumps(record, sort_keys=True),
    )
    said, _ = prepared(photo.metadata, format, size=pixels.shape[:2], is_srgb=is_srgb, record=text)
    if format == "tiff":
        return _tiff(pixels, icc, said)
    if format == "png":
        return _png(pixels, icc, said)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    options: dict[str, Any] = {"quality": quality, "icc_profile": icc}
    options |= {"exif": EXIF_HEADER + said.exif} if said.exif else {}
    options |= {"xmp": said.xmp} if said.xmp else {}
    if format == "jpg":
        options |= {"format": "JPEG", "dpi": said.dpi or (0, 0)}
        options |= {} if photo.is_grey else {"subsampling": 0}
        extra = _iptc_segment(said.iptc) if said.iptc else b""
        if said.xmp_extension:
            options["xmp"], segments = extended(said.xmp, said.xmp_extension)
            extra += segments
        options |= {"extra": extra} if extra else {}
        options |= {"comment": said.texts[COMMENT].encode()} if COMMENT in said.texts else {}
    else:
        options |= {"format": "WEBP"}
        options |= {"lossless": True, "exact": True} if quality == 100 else {}
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def left_out(photo: Photo, format: str) -> tuple[str, ...]:
    """Return one line for each thing of a photograph's metadata that a format cannot hold."""
    height, width = photo.rgb.shape[-2:]
    return prepared(photo.metadata, format, size=(height, width))[1]


def _pixels(photo: Photo, bits: int, *, with_alpha: bool) -> np.ndarray:
    """Return (H, W, C) uint8 or uint16."""
    colour = photo.rgb
    if photo.is_grey:
        colour = _grey(colour)[None]
    if photo.own is not None:
        colour = photo.own.of(colour)
    if photo.alpha is not None and not with_alpha:
        colour = colour * photo.alpha + (1 - photo.alpha)
    channels = list(colour)
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


def _iptc_segment(iptc: bytes) -> bytes:
    body = b"Photoshop 3.0\0" + photoshop_resource(iptc)
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def _png(pixels: np.ndarray, icc: bytes, said: Metadata) -> bytes:
    """Encode the pixels, then put the other chunks behind the header."""
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if pixels.dtype == np.uint8:
        file = io.BytesIO()
        Image.fromarray(plain).save(file, "PNG")
        content = file.getvalue()
    else:
        import imagecodecs

        content = bytes(imagecodecs.png_encode(plain))
    chunks = [(b"iCCP", b"profile\0\0" + zlib.compress(icc))]
    if said.dpi:
        per_metre = (round(value / 0.0254) for value in said.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    elif said.aspect:
        chunks.append((b"pHYs", struct.pack(">IIB", *said.aspect, 0)))
    if said.exif:
        chunks.append((b"eXIf", said.exif))
    texts = dict(said.texts)
    if said.iptc:
        texts["Raw profile type iptc"] = raw_profile("iptc", photoshop_resource(said.iptc))
    if said.xmp:
        texts[XMP_TEXT] = said.xmp.decode("utf-8")
    for key, text in texts.items():
        name = key.encode("latin-1", "replace")
        chunks.append((b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8", "replace")))
    end = 8 + 25  # signature and header
    return content[:end] + b"".join(_chunk(*chunk) for chunk in chunks) + content[end:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _tiff(pixels: np.ndarray, icc: bytes, said: Metadata) -> bytes:
    import tifffile

    tree = exif.read(said.exif) if said.exif else None
    file = io.BytesIO()
    channels = pixels.shape[-1]
    tifffile.imwrite(
        file,
        pixels[..., 0] if channels == 1 else pixels,
        byteorder=tree.form.order if tree else "<",  # type: ignore[arg-type]
        photometric="minisblack" if channels <= 2 else "rgb",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        iccprofile=icc,
        resolution=said.dpi,
        resolutionunit=2 if said.dpi else None,
        metadata=None,
        software=False,
    )
    added = {t: e for t, e in (tree.root if tree else {}).items() if t not in exif.PIXEL_TAGS}
    if said.xmp:
        added[exif.XMP] = exif.Entry(exif.BYTE, said.xmp)
    if said.iptc:
        added[exif.IPTC] = exif.Entry(exif.UNDEFINED, said.iptc)
    if added:
        exif.into_tiff(file, added)
    return file.getvalue()
