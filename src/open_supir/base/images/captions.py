"""Captions beside images: which text file belongs to an image, and in which encoding it is."""

import codecs
import re
from pathlib import Path

MAX_CAPTION_BYTES = 65536
ENDINGS = (".txt", ".TXT")
BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WESTERN = re.compile(r"(?:[\x09\x0a\x0d -~]|[^\W\d_]|[‘’“”–—…«»°©®€£])*")
FOREIGN_RUN = re.compile(rb"[\x80-\xff]{3}")


def caption_file(image: Path, folder: Path | None = None) -> Path | None:
    """Return the text file of an image: photo.txt or photo.jpg.txt for photo.jpg, or None.

    Args:
        folder: Where to look; by default beside the image.
    """
    place = folder or image.parent
    names = [f"{stem}{ending}" for stem in (image.stem, image.name) for ending in ENDINGS]
    return next((place / name for name in names if (place / name).is_file()), None)


def read_caption(path: Path) -> str:
    """Read a caption as one line.

    Raises:
        ValueError: The file is larger than MAX_CAPTION_BYTES, or its encoding cannot be known.
        OSError: It cannot be read.
    """
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise ValueError(f"{path}: caption file larger than {MAX_CAPTION_BYTES} bytes")
    try:
        return one_line(decode_text(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def caption_beside(image: Path) -> str:
    """Return the caption of the text file beside an image; "" without one. Raises as above."""
    path = caption_file(image)
    return "" if path is None else read_caption(path)


def decode_text(data: bytes) -> str:
    """Decode a text by its byte order mark, as UTF-8, as UTF-16, or as Western (Windows-1252).

    The last only where all that is not ASCII looks like letters within words; texts in other
    single-byte or East Asian encodings are refused, for none of them can be told from another.

    Raises:
        ValueError: The encoding cannot be known.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decoded(data, name)
    if b"\0" in data:
        low, high = data[0::2].count(0), data[1::2].count(0)
        return _decoded(data, "utf-16-le" if high > low else "utf-16-be")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = _decoded(data, "cp1252")
    if FOREIGN_RUN.search(data) or not WESTERN.fullmatch(text):
        raise ValueError("caption in an unknown encoding: save it as UTF-8")
    return text


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        raise ValueError("caption in an unknown encoding: save it as UTF-8") from error


def one_line(text: str) -> str:
    """Return `text` without control characters, and with whitespace collapsed to single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
