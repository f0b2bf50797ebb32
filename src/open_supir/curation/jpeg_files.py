"""Estimate the quality of JPEG files and strip their metadata, without decoding."""

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

# ITU-T T.81, tables K.1 and K.2, which libjpeg scales by its quality setting; natural order
LUMINANCE = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]  # fmt: skip
CHROMINANCE = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
]  # fmt: skip
APP1, APP14, APP15, COMMENT = 0xE1, 0xEE, 0xEF, 0xFE
START_OF_FRAME, START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xC0, 0xD8, 0xD9, 0xDA
# Ends the data of a scan: a marker that is not a stuffed byte, fill byte or restart marker
AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> float:
    """Return the libjpeg quality, 1 to 100, with the nearest quantisation tables.

    Exact for files from libjpeg and its relatives; an equivalent quality for other encoders.

    Args:
        tables: Tables by number, 64 divisors each, as Pillow returns them.

    Raises:
        ValueError: There are no tables, or one does not have 64 entries.
    """
    given = [np.asarray(tables[n]) for n in sorted(tables)[:2]]
    if not given or any(table.shape != (64,) for table in given):
        raise ValueError("quantisation tables must have 64 entries")
    error = np.zeros(100)
    for table, scaled in zip(given, _scaled_tables(), strict=False):
        error += np.abs(scaled - table).sum(axis=1)
    best = np.flatnonzero(error == error.min())
    return float(best[-1] + 1)


@functools.cache
def _scaled_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return both standard tables at quality 1 to 100, (100, 64) each, by libjpeg's rule."""
    quality = np.arange(1, 101)[:, None]
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = [np.asarray(base)[None] for base in (LUMINANCE, CHROMINANCE)]
    first, second = (np.clip((base * scale + 50) // 100, 1, 255) for base in tables)
    return first, second


def strip_metadata(data: bytes) -> bytes:
    """Return a JPEG file without EXIF, XMP, colour profile and comments; pixels are unchanged.

    The JFIF header and Adobe's marker, which affect colours, are kept. Data appended by cameras and
    phones (previews with their own EXIF, gain maps, videos) is removed. A file whose segments
    cannot be parsed is returned unchanged.
    """
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and at + 1 < len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == END_OF_IMAGE:
            return b"".join([*kept, data[at : at + 2]])
        lost = marker < START_OF_FRAME or marker == 0xFF or 0xD0 <= marker <= START_OF_IMAGE
        after = AFTER_SCAN.search(data, end) if marker == START_OF_SCAN else None
        if lost or end > len(data) or (marker == START_OF_SCAN and after is None):
            return data
        end = after.start() if after else end
        dropped = APP1 <= marker <= APP15 and marker != APP14 or marker == COMMENT
        if not dropped:
            kept.append(data[at:end])
        at = end
    return data
