"""XMP files beside photographs, for their results."""

import os
from collections.abc import Container
from pathlib import Path

from open_supir.base.files import printable
from open_supir.base.images import xmp

SUFFIXES = (".xmp", ".XMP")


def copied_sidecars(
    source: Path, target: Path, size: tuple[int, int], *, is_srgb: bool, ours: Container[Path]
) -> tuple[dict[Path, bytes], list[str]]:
    """Return the XMP files for a result, updated like its own XMP, and notes.

    NAME.xmp stays NAME.xmp, and NAME.jpg.xmp becomes NAME.png.xmp.

    Args:
        source, target: Photograph and result.
        size: (H, W) of the result.
        is_srgb: Whether it is in sRGB.
        ours: Files that may be replaced.
    """
    contents: dict[Path, bytes] = {}
    notes = []
    for suffix in SUFFIXES:
        for beside, copy in (
            (source.with_suffix(suffix), target.with_suffix(suffix)),
            (Path(f"{source}{suffix}"), Path(f"{target}{suffix}")),
        ):
            if not os.path.isfile(beside):  # also where the name would be too long
                continue
            if os.path.lexists(copy) and copy not in ours:
                notes.append(f"{printable(copy)} was there before and is kept")
                continue
            packet = beside.read_bytes()
            try:
                contents[copy] = xmp.updated(packet, size, is_srgb=is_srgb)
            except ValueError as error:
                contents[copy] = packet
                notes.append(f"{printable(beside)} is copied as it is: {error}")
    return contents, notes
