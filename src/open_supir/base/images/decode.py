"""Image files -> pixels as the file holds them: one decoder a kind of file.

Pillow reads colours of 16 bits as 8, so deeper files go through imagecodecs and tifffile. The size
is checked before any pixel is decoded. Shapes: H W image size.
"""

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from open_supir.base.images.colour import png_profile
from open_supir.base.images.kinds import jxl_size, kind_of, wanting
from open_supir.base.images.metadata import Metadata, of_image, of_tiff

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
HEIC = ("HEIF",)  # the name of pillow-heif's plugin
# What Pillow raises on damaged files; SyntaxError is its word for a broken PNG chunk
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    MemoryError,
    OverflowError,
    Image.DecompressionBombError,
)
# What tifffile and imagecodecs raise besides their own errors, which are ValueErrors
TIFF_ERRORS = (LookupError, TypeError, ArithmeticError, RuntimeError, AttributeError)
ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, SEPARATED = 0, 1, 2, 5  # TIFF's PhotometricInterpretation
ASSOCIATED, UNASSOCIATED = 1, 2  # TIFF's ExtraSamples: alpha premultiplied, or not

CheckSize = Callable[[int, int], None]
# 1 MB is Pillow's limit for a text or a profile; of both together 64 MB, which holds off bombs
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The pixels of an image file: not upright yet, in the colours of the file."""

    # (H, W, 1) grey, (H, W, 3) RGB or (H, W, 4) CMYK; uint8 or uint16 at full scale
    colour: np.ndarray
    alpha: np.ndarray | None = None  # (H, W) of the same type, or None
    icc: bytes | None = None  # colour profile, or None
    orientation: int = 1  # 1 to 8, as in EXIF: how to turn `colour` and `alpha`
    metadata: Metadata = Metadata()  # what else the file says
    is_animated: bool = False  # whether it is the first frame of several
    is_palette: bool = False  # whether the file holds a palette
    is_turned: bool = False  # whether the file holds the image lying or mirrored
    jpeg_tables: Mapping[int, Sequence[int]] | None = None  # quantisation tables of a JPEG
    notes: tuple[str, ...] = ()  # what was left out, for the user


def decode(data: bytes, check_size: CheckSize, *, strict: bool = False) -> Raster:
    """Decode an image file of any ordinary kind; of several frames or pages, the first.

    Args:
        check_size: Called with (H, W) before pixels are decoded; raises if they are too many.
        strict: Refuse JPEGs with flipped bits, which Pillow decodes to garbage.

    Raises:
        DECODE_ERRORS: The file is damaged, or is not an image.
    """
    Image.MAX_IMAGE_PIXELS = None  # `check_size` decides, at any limit that the user sets
    kind = kind_of(data)
    if needed := wanting(kind):
        raise ValueError(f"{kind.upper()}, which needs {needed}")
    if kind == "jxl":
        return _jxl(data, check_size)
    if data[:8] == PNG_SIGNATURE and data[12:16] == b"IHDR" and data[24:25] == b"\x10":
        return _deep_png(data, check_size)
    if data[:4] in TIFF_SIGNATURES:
        try:
            deep = _deep_tiff(data, check_size)
        except TIFF_ERRORS as error:
            raise ValueError(f"damaged TIFF, {type(error).__name__}") from error
        return deep or _by_pillow(data, check_size, strict)
    if kind == "heic":
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
        return _by_pillow(data, check_size, strict, formats=HEIC)
    return _by_pillow(data, check_size, strict)


def _by_pillow(
    data: bytes, check_size: CheckSize, strict: bool, *, formats: Sequence[str] = FORMATS
) -> Raster:
    with Image.open(io.BytesIO(data), formats=tuple(formats)) as image:
        check_size(image.height, image.width)
        several = getattr(image, "is_animated", False) and image.format != "MPO"
        lying = image.format == "TIFF" and _orientation(image) != 1  # turned by `load`
        if strict and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            import simplejpeg

            colours = "RGB" if image.mode == "RGB" else "GRAY"
            pixels, alpha = simplejpeg.decode_jpeg(data, colorspace=colours), None
        else:
            image.load()
            pixels, alpha = _channels(image)
        orientation = _orientation(image)  # which loads a PNG: damage must be found before
        return Raster(
            colour=pixels,
            alpha=alpha,
            icc=png_profile(data, image.info)
            if image.format == "PNG"
            else image.info.get("icc_profile"),
            orientation=orientation,
            metadata=of_tiff(data) if image.format == "TIFF" else of_image(image),
            is_animated=several and image.format != "TIFF",
            is_palette=image.mode in ("P", "PA"),
            is_turned=lying or orientation != 1,
            jpeg_tables=getattr(image, "quantization", None),
            notes=("only the first of several frames is read",) if several else (),
        )


def _orientation(image: Image.Image) -> int:
    """Return how to turn the image, 1 to 8; 1 where its EXIF is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*DECODE_ERRORS, TypeError, LookupError):
        return 1
    return found if found in range(1, 9) else 1


def _channels(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Split 8-bit pixels of any mode into (H, W, C) colour and (H, W) alpha."""
    if image.mode.startswith(("I", "F")):  # 32-bit grey of no known range
        raise ValueError(f"mode {image.mode} is not supported")
    is_grey, alpha = image.mode in ("1", "L", "LA", "La"), None
    is_palette = image.mode in ("P", "PA")
    if image.mode in ("PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    if image.mode != "CMYK":
        image = image.convert("L" if is_grey else "RGB")
    pixels = np.asarray(image)
    if is_palette and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    return pixels[..., None] if pixels.ndim == 2 else pixels, alpha


def _deep_png(data: bytes, check_size: CheckSize) -> Raster:
    """Decode a PNG of 16 bits per channel."""
    import imagecodecs

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        check_size(image.height, image.width)
        image.load()  # finds damage; the other decoder would fill in what is missing
        metadata, icc = of_image(image), png_profile(data, image.info)
        orientation = _orientation(image)
    try:
        pixels = imagecodecs.png_decode(data)
    except imagecodecs.PngError as error:
        raise ValueError(str(error)) from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = 1 if pixels.shape[-1] <= 2 else 3
    alpha = pixels[..., colours] if pixels.shape[-1] > colours else None
    return Raster(
        colour=pixels[..., :colours],
        alpha=alpha,
        icc=icc,
        orientation=orientation,
        metadata=metadata,
        is_turned=orientation != 1,
    )


def _jxl(data: bytes, check_size: CheckSize) -> Raster:
    """Decode a JPEG XL file; the decoder turns it upright and gives no profile."""
    import imagecodecs

    check_size(*jxl_size(data))
    try:
        pixels = imagecodecs.jpegxl_decode(data, index=0)
    except imagecodecs.JpegxlError as error:
        raise ValueError(f"damaged JPEG XL ({error})") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = full_scale(pixels, pixels.dtype.itemsize * 8)
    colours = 1 if pixels.shape[-1] <= 2 else 3
    return Raster(
        colour=pixels[..., :colours],
        alpha=pixels[..., colours] if pixels.shape[-1] > colours else None,
        notes=("of JPEG XL only pixels are read, as sRGB; EXIF is not kept",),
    )


def _deep_tiff(data: bytes, check_size: CheckSize) -> Raster | None:
    """Decode a TIFF of a depth that Pillow does not read, or with extra channels; None for others.

    Depths below 8 bits come out as 8, those above as 16.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        colours = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, SEPARATED: 4}.get(page.photometric)
        plain = (1, 2, 4, 8) if page.samplesperpixel == 1 else (8,)
        if page.bitspersample in plain and not (page.extrasamples and colours):
            return None
        check_size(page.imagelength, page.imagewidth)
        if colours is None or page.samplesperpixel < colours or page.imagedepth != 1:
            raise ValueError(
                f"colour model {page.photometric} with {page.samplesperpixel} channels of "
                f"{page.bitspersample} bits is not supported"
            )
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = full_scale(pixels[..., None] if pixels.ndim == 2 else pixels, page.bitspersample)
        notes = ["only the first of several pages is read"] if len(file.pages) > 1 else []
        extra = list(page.extrasamples)
        kind = next((k for k in extra if k in (ASSOCIATED, UNASSOCIATED)), None)
        alpha = None if kind is None else pixels[..., colours + extra.index(kind)]
        colour = pixels[..., :colours]
        if page.photometric == WHITE_IS_ZERO:
            colour = np.iinfo(colour.dtype).max - colour
        if alpha is not None and kind == ASSOCIATED:
            colour = _unpremultiplied(colour, alpha)
        if page.samplesperpixel - colours > (alpha is not None):
            notes.append("channels besides colour and transparency are left out")
        orientation = page.tags.valueof(ORIENTATION) or 1
        return Raster(
            colour=colour,
            alpha=alpha,
            icc=page.tags.valueof(34675),
            orientation=orientation,
            metadata=of_tiff(data),
            is_turned=orientation != 1,
            notes=tuple(notes),
        )


def full_scale(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Map channels of any depth to uint8 or uint16 over their whole range.

    Args:
        pixels: (H, W, C) unsigned, of `bits` each, or floating point in [0, 1].
        bits: Bits per channel: 2 ** bits - 1 is white.
    """
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError("holds values that are not numbers")
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"floating-point values must be in [0, 1], these are in "
                f"[{pixels.min():g}, {pixels.max():g}]"
            )
        return _scaled(pixels, 65535)
    if pixels.dtype.kind != "u":
        raise ValueError(f"pixels of type {pixels.dtype} are not supported")
    if bits in (8, 16):
        return pixels
    if bits < 8:
        return _scaled(pixels, 255 / (2**bits - 1), np.uint8)
    return _scaled(pixels, 65535 / (2**bits - 1))


def _scaled(pixels: np.ndarray, factor: float, dtype: type = np.uint16) -> np.ndarray:
    out = np.empty(pixels.shape, dtype=dtype)
    for row, values in enumerate(pixels):  # no copy of the whole in 64 bits
        out[row] = np.rint(values.astype(np.float64) * factor)
    return out


def _unpremultiplied(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide (H, W, C) by (H, W) alpha; invisible pixels stay as they are."""
    full, out = np.iinfo(colour.dtype).max, colour.copy()
    for row, (values, cover) in enumerate(zip(colour, alpha, strict=True)):
        seen = cover > 0
        restored = values[seen] * (full / cover[seen].astype(np.float64))[:, None]
        out[row, seen] = np.rint(restored).clip(0, full)
    return out
