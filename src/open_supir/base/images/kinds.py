"""Kinds of image files, recognised by their first bytes, since names can be wrong."""

import importlib.util
import struct
from collections.abc import Iterator

START_BYTES = 32  # enough for `kind_of`
JXL_CODESTREAM, JXL_CONTAINER = b"\xff\n", b"\0\0\0\x0cJXL \r\n\x87\n"
# Of cameras; most of them are TIFFs by their first bytes, with a small preview as first image
RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
DEVELOP = "raw: develop it to TIFF or PNG first"
# JPEG XL: width over height, by code (ISO/IEC 18181-1, size header)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def kind_of(start: bytes) -> str:
    """Return the kind of an image file from its first bytes; "" for what is none.

    Args:
        start: The first START_BYTES of the file; what follows them is ignored.
    """
    start = start[:START_BYTES]
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"  # MPO too: a JPEG with more of them behind it
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if start.startswith((JXL_CODESTREAM, JXL_CONTAINER)):
        return "jxl"
    if start[:2] == b"BM" and start[15:18] == b"\0\0\0" and start[14:15] in b"\x0c(4@lx|":
        return "bmp"
    if start[4:8] == b"ftyp":
        brands = [start[8:12], *(start[at : at + 4] for at in range(16, len(start), 4))]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        if start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            return "heic"
    return ""


def is_raw(name: str, start: bytes = b"") -> bool:
    """Return whether a file is a camera's raw photograph, by its name and first bytes.

    An image of another kind under such a name is not.
    """
    return name.lower().endswith(RAW_SUFFIXES) and kind_of(start) in ("", "tiff")


def wanting(kind: str) -> str:
    """Return what has to be installed before files of this kind can be read; "" for nothing."""
    if kind == "heic" and importlib.util.find_spec("pillow_heif") is None:
        return "pip install pillow-heif"
    if kind == "jxl":
        import imagecodecs

        return "" if imagecodecs.JPEGXL.available else "an imagecodecs built with JPEG XL"
    if kind == "avif":
        from PIL import features

        return "" if features.check("avif") else "a Pillow built with AVIF"
    return ""


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return (H, W) of a JPEG XL file from its header, before anything is decoded.

    Raises:
        ValueError: The file ends before its size.
    """
    start = _codestream(data)[2:16]
    bits = int.from_bytes(start, "little")
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > 8 * len(start):
            raise ValueError("ends before its size")
        return (bits >> (at - count)) & ((1 << count) - 1)

    def side(is_small: int) -> int:
        return 8 * (1 + read(5)) if is_small else 1 + read((9, 13, 18, 30)[read(2)])

    is_small = read(1)
    height = side(is_small)
    ratio = read(3)
    if ratio == 0:
        return height, side(is_small)
    over, under = _RATIOS[ratio - 1]
    return height, height * over // under


def _codestream(data: bytes) -> bytes:
    """Return the codestream, or its beginning, of a file with or without a container."""
    if data.startswith(JXL_CODESTREAM):
        return data
    for name, content in _boxes(data):
        if name == b"jxlc":
            return content
        if name == b"jxlp":  # the first part, after its number
            return content[4:]
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = len(data) if size == 0 else at + max(size, head)
        yield name, data[at + head : min(end, at + head + 64)]
        at = end
