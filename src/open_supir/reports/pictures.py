"""Pictures in documents: embedded in a page, or copied beside it."""

import base64
import io
import mimetypes
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from open_supir.base.files import write_bytes

if TYPE_CHECKING:
    from PIL import Image

SIDES = (1024, 768, 512, 384, 256, 160, 96)
LARGE_FILE, LARGE_SIDE = 300_000, 768  # bytes, pixels; larger files are reduced for documents


def embed(path: Path, most: int = LARGE_FILE, *, alike: bool = False) -> str:
    """Return a picture as a data URL of at most `most` bytes before base64, if possible.

    Files that are small enough are embedded as they are; others as a JPEG, reduced until it fits.
    With `alike`, every picture becomes a JPEG of the largest side, so that nothing but the content
    tells them apart.
    """
    content, kind = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/png"
    if alike or len(content) > most:
        whole, kind = _decode(content, SIDES[0]), "image/jpeg"
        for side in SIDES:
            content = _small_jpeg(whole, side, quality=88)
            if alike or len(content) <= most:
                break
    return _address(content, kind)


def thumbnail(content: bytes, side: int) -> str:
    """Return the content of an image file as the data URL of a small JPEG."""
    return _address(_small_jpeg(_decode(content, side), side, quality=80), "image/jpeg")


def publish(path: Path, folder: Path, name: str) -> Path:
    """Copy a picture into `folder` as `name`, reduced if large, and return its path."""
    target = folder / (file_name(name.removesuffix(path.suffix)) + path.suffix.lower())
    content = path.read_bytes()
    if len(content) > LARGE_FILE:
        content = _small_jpeg(_decode(content, LARGE_SIDE), LARGE_SIDE, quality=95)
        target = target.with_suffix(".jpg")
    write_bytes(target, content, fsync=False)
    return target


def file_name(name: str) -> str:
    """Return a name valid on every file system; distinct names stay distinct."""
    plain = re.sub(r"[^\w.=-]+", "_", name)[:60]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _decode(content: bytes, side: int) -> "Image.Image":
    from PIL import Image  # here, so that what only names documents starts without it

    with Image.open(io.BytesIO(content)) as picture:
        picture.draft("RGB", (2 * side, 2 * side))  # decode JPEGs no larger than needed
        return picture.convert("RGB")


def _small_jpeg(whole: "Image.Image", side: int, *, quality: int) -> bytes:
    small = whole.copy()
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
