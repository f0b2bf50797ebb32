"""Read image files: upright sRGB of 8 or 16 bits, with alpha and metadata.

Shapes: H W image size.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from open_supir.base.images.colour import Intent, is_foreign, to_srgb
from open_supir.base.images.decode import DECODE_ERRORS, FORMATS, CheckSize, decode
from open_supir.base.images.kinds import DEVELOP, is_raw
from open_supir.base.images.metadata import Metadata
from open_supir.base.images.own_colours import OwnColours

MAX_PIXELS = 100_000_000
MAX_SIDE = 2**16
MAX_FILE_BYTES = 2**31
GREY_SPREAD = 4.5 / 255  # between the channels of a scan of something grey


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """An image file's pixels, upright and in sRGB, at their own depth."""

    colour: np.ndarray  # (H, W, 3), of a file without colour (H, W, 1); uint8 or uint16
    own: np.ndarray  # (H, W, C) as the file has it, in the profile `icc`
    icc: bytes | None  # the file's profile, or None
    alpha: np.ndarray | None  # (H, W, 1) of the same type, or None
    metadata: Metadata  # what else the file says
    is_animated: bool  # whether it is the first frame of several
    jpeg_tables: Mapping[int, Sequence[int]] | None  # quantisation tables of a JPEG
    normalised: list[str]  # what plain 8-bit RGB took: upright, profile, alpha, 8 bit, rgb
    notes: tuple[str, ...]  # what was left out, for the user

    def over_white(self) -> np.ndarray:
        """Return (H, W, 3) uint8, with transparent pixels composited on white."""
        full = np.iinfo(self.colour.dtype).max
        if self.alpha is None and full == 255:
            return np.broadcast_to(self.colour, (*self.colour.shape[:2], 3))
        out = np.empty((*self.colour.shape[:2], 3), dtype=np.uint8)
        for row, colour in enumerate(self.colour):  # no copy of the whole as floats
            unit = colour / full
            if self.alpha is not None:
                unit = 1 + (unit - 1) * (self.alpha[row] / full)
            out[row] = np.rint(unit * 255)
        return out


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph, read for restoring."""

    rgb: Tensor  # (3, H, W) sRGB in [0, 1], float32, upright
    alpha: Tensor | None = None  # (1, H, W) in [0, 1], or None
    is_grey: bool = False  # whether the file had no colour
    bits: int = 8  # 8 or 16 per channel
    own: OwnColours | None = None  # None if in sRGB, or with a profile for reading only
    metadata: Metadata = Metadata()  # what else the file says
    notes: tuple[str, ...] = ()  # what was left out, for the user

    @property
    def visible(self) -> Tensor:
        """`rgb`, with fully transparent pixels in the mean colour of the rest.

        Hidden colours are not part of the picture; they can have any value.
        """
        hidden = None if self.alpha is None else self.alpha == 0
        if self.alpha is None or hidden is None or not hidden.any() or hidden.all():
            return self.rgb
        mean = (self.rgb * self.alpha).sum(dim=(1, 2), keepdim=True) / self.alpha.sum()
        return torch.where(hidden, mean, self.rgb)

    def looks_grey(self) -> bool:
        """Whether red, green and blue are equal, but for the noise of a scanner.

        They differ by no more than GREY_SPREAD in 99 % of the pixels.
        """
        spread = self.rgb.amax(dim=0) - self.rgb.amin(dim=0)
        return bool((spread > GREY_SPREAD).float().mean() <= 0.01)


def quieten_readers() -> None:
    """Hide the decoding libraries' own warnings: `read_photo` reports what is wrong."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damaged EXIF
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def read_pixels(
    data: bytes, check_size: CheckSize, *, strict: bool = False, intent: Intent = "perceptual"
) -> Pixels:
    """Decode an image file of any ordinary mode, turn it upright and convert it to sRGB.

    Args:
        check_size: Called with (H, W) before pixels are decoded; raises if they are too many.
        strict: Refuse JPEGs with flipped bits.
        intent: Of the conversion to sRGB.

    Raises:
        ValueError: The file is not an image, is damaged, or holds values that are not colours.
    """
    try:
        raster = decode(data, check_size, strict=strict)
        colour = to_srgb(raster.colour, raster.icc, intent)
    except UnidentifiedImageError as error:  # its own words hold an address
        raise ValueError(f"none of {', '.join(FORMATS)}") from error
    except ValueError:
        raise
    except DECODE_ERRORS as error:
        raise ValueError(_reason(error)) from error
    alpha = None if raster.alpha is None else raster.alpha[..., None]
    steps = {
        "upright": raster.is_turned,
        "profile": is_foreign(raster.icc),
        "alpha": alpha is not None,
        "8 bit": colour.dtype != np.uint8,
        "rgb": raster.colour.shape[-1] != 3 or raster.is_palette,
    }
    return Pixels(
        colour=_upright(colour, raster.orientation),
        own=_upright(raster.colour, raster.orientation),
        icc=raster.icc,
        alpha=None if alpha is None else _upright(alpha, raster.orientation),
        metadata=raster.metadata,
        is_animated=raster.is_animated,
        jpeg_tables=raster.jpeg_tables,
        normalised=[name for name, needed in steps.items() if needed],
        notes=raster.notes,
    )


def read_photo(path: Path, *, max_pixels: int = MAX_PIXELS, intent: Intent = "perceptual") -> Photo:
    """Read an image file with its depth, alpha, greyness and metadata.

    The size is checked before anything is decoded. Of an animation or several
    pages, the first is read.

    Raises:
        FileNotFoundError: There is no such file, or a link leads nowhere or in circles.
        ValueError: It is not a readable image, is too large, or holds values that are not colours.
    """
    pixels = read_file_pixels(path, max_pixels, intent)
    rgb, alpha = _tensor(pixels.colour).expand(3, -1, -1), None
    if pixels.alpha is not None and pixels.alpha.min() < np.iinfo(pixels.alpha.dtype).max:
        alpha = _tensor(pixels.alpha)
    own = OwnColours.found(pixels.icc, pixels.own, rgb, intent)
    return Photo(
        rgb=rgb.contiguous(),
        alpha=alpha,
        is_grey=pixels.colour.shape[-1] == 1,
        bits=pixels.colour.dtype.itemsize * 8,
        metadata=pixels.metadata,
        own=own if isinstance(own, OwnColours) else None,
        notes=(*pixels.notes, own) if isinstance(own, str) else pixels.notes,
    )


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read any ordinary image file as (3, H, W) uint8 sRGB, alpha over white.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a readable image, or has more than `max_pixels` pixels.
    """
    path = Path(path)
    try:
        pixels = read_file_pixels(path, max_pixels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return torch.from_numpy(pixels.over_white().copy()).permute(2, 0, 1).contiguous()


def read_file_pixels(path: Path, max_pixels: int, intent: Intent = "perceptual") -> Pixels:
    """Decode a file as `read_pixels` does; raises as `read_photo` does."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise FileNotFoundError(f"no readable file ({_reason(error)})") from error
    if not path.is_file():
        raise FileNotFoundError("not a regular file, but a pipe, a device or a folder")
    if not 0 < size <= MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes" if size else "the file is empty")

    def check_size(height: int, width: int) -> None:
        if width * height > max_pixels or max(width, height) > MAX_SIDE:
            raise ValueError(
                f"{width}x{height} pixels, limit {max_pixels} and {MAX_SIDE} a side"
                + (f"; set max_pixels={width * height} or more" * (max(width, height) <= MAX_SIDE))
            )
        if width < 1 or height < 1:
            raise ValueError(f"{width}x{height} pixels")

    try:
        data = path.read_bytes()
    except PermissionError as error:
        raise ValueError(f"may not be read ({_reason(error)})") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({_reason(error)})") from error
    if is_raw(path.name, data):
        raise ValueError(f"cannot be read ({DEVELOP})")
    try:
        return read_pixels(data, check_size, intent=intent)
    except ValueError as error:
        raise ValueError(f"cannot be read ({_reason(error)})") from error


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) according to the EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.flip(image, flips) if flips else image


def _tensor(pixels: np.ndarray) -> Tensor:
    """Map (H, W, C) uint8 or uint16 to (C, H, W) in [0, 1]."""
    levels = np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32) / levels)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
