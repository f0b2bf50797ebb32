"""Decodes only the rows of a JPEG that a crop needs, if the rows end in restart markers.

A baseline JPEG must be read from its start, because entropy coding hides where rows begin. Restart
markers (ITU-T T.81, B.1.1.5 and E.1.4) at the end of each row of blocks show where they begin and
reset the coder. The wanted rows, with the height in the header adjusted, are then a complete JPEG
for any decoder, and the pixels are exactly those of a full decode. `encode_jpeg` writes such files
with Pillow's `restart_marker_rows=1`; they are a few hundred bytes larger. Other JPEG files are
decoded whole.
"""

import io
import struct
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

QUALITY = 95
BASELINE, SCAN, RESTART_INTERVAL, END = 0xC0, 0xDA, 0xDD, b"\xff\xd9"
CHUNK = 1 << 16


class _Layout(NamedTuple):
    """The layout of a baseline JPEG whose rows of blocks end in restart markers."""

    height: int
    height_offset: int  # byte offset of the height in the frame header
    scan: int  # first byte of entropy-coded data
    unit: int  # pixel rows between restart markers


def encode_jpeg(pixels: np.ndarray, *, quality: int = QUALITY) -> bytes:
    """Encode (H, W, 3) uint8 for storage: full chroma, a restart marker after each block row."""
    data = io.BytesIO()
    options = {"quality": quality, "subsampling": 0, "restart_marker_rows": 1}
    Image.fromarray(pixels).save(data, "JPEG", **options)
    return data.getvalue()


def decode_rows(data: bytes, top: int, bottom: int) -> np.ndarray:
    """Decode rows `top` to `bottom` of a JPEG to (bottom - top, W, 3) uint8, strictly.

    Damage in the other rows goes unnoticed, except for a truncated file.

    Raises:
        ValueError: The file is damaged.
    """
    layout = _layout(data)
    if layout is None or not data.endswith(END):
        return simplejpeg.decode_jpeg(data, colorspace="RGB")[top:bottom]
    # One more unit on each side, because upsampling subsampled chroma looks beyond the edge.
    first = max(0, top // layout.unit - 1)
    last = min(-(-layout.height // layout.unit), -(-bottom // layout.unit) + 1)
    whole = first == 0 and last * layout.unit >= layout.height
    part = None if whole else _splice(data, layout, first, last)
    if part is None:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")[top:bottom]
    start = first * layout.unit
    return simplejpeg.decode_jpeg(part, colorspace="RGB")[top - start : bottom - start]


def _layout(data: bytes) -> _Layout | None:
    """Read the headers; None if this file does not allow finding rows."""
    offset, height, width, height_offset, interval, components = 2, 0, 0, 0, 0, 0
    block = (8, 8)
    while True:
        if len(data) < offset + 10 or data[offset] != 0xFF:
            return None
        marker, size = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4])
        if marker == BASELINE:
            height, width, components = struct.unpack_from(">HHB", data, offset + 5)
            height_offset = offset + 5
            factors = data[offset + 11 : offset + 10 + 3 * components : 3]
            if len(factors) != components or not all(f & 15 and f >> 4 for f in factors):
                return None
            block = (8 * max(f & 15 for f in factors), 8 * max(f >> 4 for f in factors))
        elif 0xC0 < marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None  # progressive, arithmetic, lossless
        elif marker == RESTART_INTERVAL:
            interval = int.from_bytes(data[offset + 4 : offset + 6])
        elif marker == SCAN:
            break
        offset += 2 + size
    # The blocks of a single component are not interleaved, so its sampling factors do not matter.
    rows, columns = (8, 8) if components == 1 else block
    per_row = -(-width // columns)
    if not height or not interval or not per_row or interval % per_row:
        return None
    if data[offset + 4] != components:
        return None  # one scan per component
    return _Layout(height, height_offset, offset + 2 + size, rows * (interval // per_row))


def _splice(data: bytes, layout: _Layout, first: int, last: int) -> bytearray | None:
    """Make a JPEG of units `first` to `last`; None if markers are missing or out of order."""
    units = -(-layout.height // layout.unit)
    ends = _restart_markers(data, layout.scan, min(last, units - 1))
    if len(ends) < min(last, units - 1):
        return None
    begin = layout.scan if first == 0 else int(ends[first - 1]) + 2
    end = len(data) - len(END) if last == units else int(ends[last - 1])
    inner = ends[first : last - 1]
    part = bytearray(data[: layout.scan])
    kept = min(layout.height, last * layout.unit) - first * layout.unit
    struct.pack_into(">H", part, layout.height_offset, kept)
    start = len(part)
    part += data[begin:end]
    numbers = np.frombuffer(part, np.uint8)  # restart markers must count from 0, modulo 8
    numbers[start + inner - begin + 1] = 0xD0 + np.arange(len(inner)) % 8
    del numbers
    part += END
    return part


def _restart_markers(data: bytes, scan: int, count: int) -> np.ndarray:
    """Find the first `count` restart markers; returns fewer if they are missing or out of order."""
    codes, found, total, offset = np.frombuffer(data, np.uint8), [], 0, scan
    while total < count and offset < len(data) - 1:
        piece = codes[offset : offset + CHUNK + 1]
        marks = np.flatnonzero(piece[:-1] == 0xFF)
        kinds = piece[marks + 1]
        marks = marks[(kinds & 0xF8) == 0xD0]
        found.append(marks + offset)
        total, offset = total + len(marks), offset + CHUNK
    ends = np.concatenate([*found, np.zeros(0, np.int64)])[:count]
    in_order = np.array_equal(codes[ends + 1], 0xD0 + np.arange(len(ends)) % 8)
    return ends if in_order else ends[:0]
