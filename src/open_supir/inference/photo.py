"""Photographs as files: read without loss of depth, alpha or greyness, written whole or not at all.

Pillow reads 16-bit colour as 8-bit, so files deeper than 8 bits go through imagecodecs and
tifffile. Shapes: H W image size.
"""

import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from open_supir.base.images import DECODE_ERRORS, MAX_PIXELS, READABLE_FORMATS, to_srgb

log = logging.getLogger(__name__)

FORMATS = (*READABLE_FORMATS, "GIF")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_FILE_BYTES = 2**31
# how tifffile fails on damaged tags, besides its own error
TIFF_ERRORS = (LookupError, TypeError, ArithmeticError, RuntimeError, AttributeError)
MAX_SIDE = 2**16
ORIENTATION = 0x0112
DROPPED_TAGS = (ORIENTATION, 0x0201, 0x0202)  # applied to the pixels; place and size of a thumbnail


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An image file's content.

    Attributes:
        rgb: (3, H, W) sRGB in [0, 1], float32, upright. Below full transparency its colour is the
            mean of what can be seen, for hidden colours are no part of the picture.
        alpha: (1, H, W) in [0, 1], or None.
        is_grey: Whether the file had no colour.
        bits: 8 or 16 a channel.
        exif: The file's EXIF without orientation and thumbnail; may be empty.
        notes: What was left out, for the user.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    is_grey: bool = False
    bits: int = 8
    exif: bytes = b""
    notes: tuple[str, ...] = ()


def quieten_readers() -> None:
    """Keep the decoding libraries' own warnings from the user: `read_photo` says what is wrong."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_photo(path: Path, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read an image file of any ordinary mode.

    The size is checked before anything is decoded. Of an animation or a file of several pages the
    first is read.

    Raises:
        FileNotFoundError: There is no such file, or a link leads nowhere or in circles.
        ValueError: It is no readable image, or too large, or holds values that are no colours.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise FileNotFoundError(f"no readable file ({_reason(error)})") from error
    if not path.is_file():
        raise FileNotFoundError("not a regular file")
    if not 0 < size <= MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes" if size else "the file is empty")
    try:
        data = path.read_bytes()
        deep = _read_deep_png(data, max_pixels) or _read_deep_tiff(data, max_pixels)
        return deep or _read_ordinary(data, max_pixels)
    except PermissionError as error:
        raise ValueError(f"may not be read ({_reason(error)})") from error
    except DECODE_ERRORS as error:
        raise ValueError(f"cannot be read ({_reason(error)})") from error


def _read_ordinary(data: bytes, max_pixels: int) -> Photo:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.width, image.height, max_pixels)
        notes = []
        if getattr(image, "is_animated", False) and image.format != "MPO":
            notes.append("only the first of several frames is restored")
        image.load()
        exif = _kept_exif(image)
        upright = ImageOps.exif_transpose(image)
        icc = image.info.get("icc_profile")
        is_grey = upright.mode in ("1", "L", "LA", "La")
        if upright.mode in ("I", "F"):  # 32-bit grey of no known range
            raise ValueError(f"mode {upright.mode} is not supported")
        alpha = None
        if upright.mode in ("PA", "LA", "RGBA", "RGBa", "La") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            alpha = _tensor(np.asarray(rgba.getchannel("A"))[..., None])
            upright = rgba.convert("L" if is_grey else "RGB")
        elif upright.mode in ("1", "P"):
            upright = upright.convert("L" if is_grey else "RGB")
        rgb = _tensor(np.asarray(to_srgb(upright, icc).convert("RGB")))
    return _photo(rgb, alpha, is_grey, 8, exif, tuple(notes))


def _read_deep_png(data: bytes, max_pixels: int) -> Photo | None:
    """Read a PNG of 16 bits a channel; None where it is something else."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or data[24:25] != b"\x10":
        return None
    import imagecodecs

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        _check_size(image.width, image.height, max_pixels)
        image.load()  # finds damage; the other decoder would fill in what is missing
        exif, icc = _kept_exif(image), image.info.get("icc_profile")
        orientation = image.getexif().get(ORIENTATION, 1)
    try:
        pixels = imagecodecs.png_decode(data)
    except imagecodecs.PngError as error:
        raise ValueError(str(error)) from error
    return _deep(pixels, icc, exif, orientation)


def _read_deep_tiff(data: bytes, max_pixels: int) -> Photo | None:
    """Read a TIFF of more than 8 bits a channel; None where it is something else."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages.first
            if page.bitspersample <= 8:
                return None
            _check_size(page.imagewidth, page.imagelength, max_pixels)
            if page.samplesperpixel > 4 or page.imagedepth != 1:
                raise ValueError(f"{page.samplesperpixel} channels are not supported")
            pixels = page.asarray()
            if page.planarconfig == 2 and pixels.ndim == 3:
                pixels = np.moveaxis(pixels, 0, -1)
            if page.photometric not in (0, 1, 2):
                raise ValueError(f"colour model {page.photometric} is not supported at this depth")
            pixels = _sixteen_bits(pixels)
            if page.photometric == 0:  # white is zero
                pixels = 65535 - pixels
            icc = page.tags.valueof(34675)
            orientation = page.tags.valueof(ORIENTATION) or 1
            several = len(file.pages) > 1
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error
    except TIFF_ERRORS as error:
        raise ValueError(f"damaged TIFF, {type(error).__name__}") from error
    photo = _deep(pixels, icc, b"", orientation)
    notes = ("only the first of several pages is restored",) if several else ()
    return _photo(photo.rgb, photo.alpha, photo.is_grey, 16, b"", notes)


def _sixteen_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError("holds values that are not numbers")
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"floating-point values must be in [0, 1], these are in "
                f"[{pixels.min():g}, {pixels.max():g}]"
            )
        return np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16)
    if pixels.dtype == np.uint16:
        return pixels
    if pixels.dtype == np.uint32:
        return (pixels >> 16).astype(np.uint16)
    raise ValueError(f"pixels of type {pixels.dtype} are not supported")


def _deep(pixels: np.ndarray, icc: bytes | None, exif: bytes, orientation: int) -> Photo:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[-1]
    is_grey, colours = channels <= 2, 1 if channels <= 2 else 3
    alpha = _tensor(pixels[..., colours:]) if channels in (2, 4) else None
    rgb = np.ascontiguousarray(pixels[..., :colours])
    if icc and not is_grey:
        rgb = _deep_to_srgb(rgb, icc)
    tensor = _upright(_tensor(rgb).expand(3, -1, -1), orientation)
    alpha = None if alpha is None else _upright(alpha, orientation)
    return _photo(tensor, alpha, is_grey, 16, exif)


def _deep_to_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    import imagecodecs

    try:
        srgb = imagecodecs.cms_profile("srgb")
        return imagecodecs.cms_transform(
            pixels, icc, srgb, colorspace="rgb", outcolorspace="rgb", outdtype="uint16"
        )
    except (imagecodecs.CmsError, ValueError) as error:
        log.warning("colour profile ignored: %s", error)
        return pixels


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Turn (C, H, W) as the EXIF orientation 1..8 says."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return image.flip(flips) if flips else image


def _photo(
    rgb: Tensor,
    alpha: Tensor | None,
    is_grey: bool,
    bits: int,
    exif: bytes,
    notes: tuple[str, ...] = (),
) -> Photo:
    if alpha is not None:
        hidden = alpha == 0
        if alpha.min() == 1:
            alpha = None
        elif hidden.any() and not hidden.all():
            mean = (rgb * alpha).sum(dim=(1, 2), keepdim=True) / alpha.sum()
            rgb = torch.where(hidden, mean, rgb)
    return Photo(
        rgb=rgb.contiguous(), alpha=alpha, is_grey=is_grey, bits=bits, exif=exif, notes=notes
    )


def _tensor(pixels: np.ndarray) -> Tensor:
    """Map (H, W, C) uint8 or uint16 to (C, H, W) in [0, 1]."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    levels = np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32) / levels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ValueError(f"{width}x{height} pixels, limit {max_pixels} and {MAX_SIDE} a side")
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")


def _kept_exif(image: Image.Image) -> bytes:
    """Return the EXIF to hand on; damaged ones are dropped."""
    try:
        exif = Image.Exif()  # of its own: the image's is still needed
        exif.load(image.getexif().tobytes())
        for tag in DROPPED_TAGS:
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else b""
    except (*DECODE_ERRORS, KeyError, TypeError, AttributeError):
        return b""


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own words hold an address
        return "in none of the known formats"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
