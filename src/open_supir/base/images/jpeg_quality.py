"""The quality setting behind a JPEG file's quantisation tables."""

import functools
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
