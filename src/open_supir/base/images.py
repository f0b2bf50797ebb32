"""Image files <-> tensors, the three value ranges, and padding.

Shapes: B batch, H W image size. Ranges: "unit" is [0, 1], "signed" is [-1, 1], both float32;
uint8 only in files and in `Batch["hq"]`.
"""

import io
import json
import logging
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from open_supir.base.files import replacing

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
# What Pillow's decoders raise on damaged files; SyntaxError is its word for a broken PNG chunk.
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
EXIF_IMAGE_DESCRIPTION = 0x010E


def to_signed(image: Tensor) -> Tensor:
    """Map uint8 or unit float to signed float32, same shape."""
    unit = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return unit * 2 - 1


def to_unit(image: Tensor) -> Tensor:
    """Map uint8 or signed float to unit float32, same shape, clamped."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    return ((image.float() + 1) / 2).clamp(0, 1)


def to_uint8(image: Tensor) -> Tensor:
    """Map unit float to uint8, rounded half to even and clamped, same shape."""
    return (image.float() * 255).round().clamp(0, 255).to(torch.uint8)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read any ordinary image file as (3, H, W) uint8 sRGB.

    EXIF orientation is applied, ICC profiles are converted to sRGB, alpha is laid over white, and
    grey, palette, CMYK and 16-bit files come out right. The size is checked before decoding.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no readable image, or has more than `max_pixels` pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        with Image.open(path, formats=READABLE_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels, limit {max_pixels}")
            image.load()
            rgb = normalise(image)
    except DECODE_ERRORS as error:
        raise ValueError(
            f"{path}: not a readable image ({str(error) or type(error).__name__})"
        ) from error
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def normalise(image: Image.Image) -> Image.Image:
    """Turn a decoded image of any mode into upright 8-bit sRGB."""
    image = ImageOps.exif_transpose(image)
    icc = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        image = _sixteen_bit_to_grey(image)
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        colour = to_srgb(rgba.convert("RGB"), icc)
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        return Image.composite(colour, white, rgba.getchannel("A"))
    return to_srgb(image, icc).convert("RGB")


def _sixteen_bit_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"mode {image.mode} with values outside 16 bits is not supported")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Convert to RGB by the embedded profile, where there is one that fits, else return `image`.

    One that does not fit is ignored, with a warning.
    """
    if not icc:
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = getattr(profile.profile, "xcolor_space", "").strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("colour profile ignored: %s", error)
        return image
    return converted if converted is not None else image


def write_image(
    path: str | Path, image: Tensor, metadata: Mapping[str, str] | None = None, *, quality: int = 95
) -> None:
    """Write a (3, H, W) unit or uint8 image as PNG, JPEG or WebP by suffix, whole or not at all.

    `metadata` becomes text chunks of a PNG, or JSON in the EXIF image description of JPEG and WebP.
    """
    path = Path(path)
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    picture = Image.fromarray(pixels.detach().cpu().permute(1, 2, 0).contiguous().numpy())
    suffix = path.suffix.lower()
    options: dict = {}
    if suffix == ".png":
        options = {"format": "PNG", "pnginfo": _png_text(metadata or {})}
    elif suffix in (".jpg", ".jpeg"):
        options = {"format": "JPEG", "quality": quality, "subsampling": 0, "exif": _exif(metadata)}
    elif suffix == ".webp":
        options = {"format": "WEBP", "quality": quality, "exif": _exif(metadata)}
    else:
        raise ValueError(f"{path}: cannot write suffix {suffix!r}; use .png, .jpg or .webp")
    with replacing(path, fsync=False) as temporary:
        picture.save(temporary, **options)


def _png_text(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, str(value))
    return info


def _exif(metadata: Mapping[str, str] | None) -> Image.Exif:
    exif = Image.Exif()
    if metadata:
        exif[EXIF_IMAGE_DESCRIPTION] = json.dumps(dict(metadata))
    return exif


def list_images(path: str | Path) -> list[Path]:
    """List the image file `path`, or all image files below the folder `path`, sorted.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` is a file that is no image, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{path}: not an image file; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
            )
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    found = sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise ValueError(
            f"{path}: no images in this folder; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    return found


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, 3, H, W) below and at the right to multiples of `multiple`, by reflection.

    Where the image is too small to reflect that far, the last reflected pixel is repeated.

    Returns:
        The padded image (`image` itself where nothing is missing), and (H, W) as it was, for
        `crop_to`.
    """
    height, width = image.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return image, (height, width)
    rows = _reflected(height, math.ceil(height / multiple) * multiple, image.device)
    columns = _reflected(width, math.ceil(width / multiple) * multiple, image.device)
    return image.index_select(-2, rows).index_select(-1, columns), (height, width)


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    index = torch.arange(padded, device=device)
    mirrored = 2 * (size - 1) - index
    return torch.where(index < size, index, mirrored.clamp(min=0))


def crop_to(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the top left (H, W) of `image`: undoes `pad_to_multiple`."""
    return image[..., : size[0], : size[1]]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., 3, H, W) to (h, w) by antialiased bicubic.

    uint8 stays uint8; floats are not clamped, and bicubic can overshoot.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image if image.ndim == 4 else image.unsqueeze(0)
    out = F.interpolate(
        batch.float(), size=size, mode="bicubic", antialias=True, align_corners=False
    )
    if image.dtype == torch.uint8:
        out = out.round().clamp(0, 255).to(torch.uint8)
    return out if image.ndim == 4 else out[0]


def resize_short_side(image: Tensor, side: int) -> Tensor:
    """Resize (..., 3, H, W) so that its shorter side is `side`, keeping the aspect ratio."""
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def image_grid(rows: Sequence[Sequence[Tensor]], *, gap: int = 2) -> Tensor:
    """Lay rows of (3, H, W) unit images out as one (3, H', W') image with white gaps.

    Each column is as wide as its widest image, each row as high as its highest.
    """
    if not rows or not any(len(row) for row in rows):
        raise ValueError("image_grid needs at least one image")
    columns = max(len(row) for row in rows)
    widths = [
        max((row[c].shape[-1] for row in rows if c < len(row)), default=0) for c in range(columns)
    ]
    heights = [max((image.shape[-2] for image in row), default=0) for row in rows]
    grid = torch.ones(3, sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image, width in zip(row, widths, strict=False):
            grid[:, top : top + image.shape[-2], left : left + image.shape[-1]] = (
                image.detach().float().cpu()
            )
            left += width + gap
        top += height + gap
    return grid
