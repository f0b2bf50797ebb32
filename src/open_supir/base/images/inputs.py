"""What a command is given: one image, or a folder of them."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_supir.base.files import printable
from open_supir.base.images.listing import no_images, walk_images
from open_supir.base.results import holds_results

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Photos:
    """The images of a command's input.

    Attributes:
        root: The folder that names are relative to.
        paths: The files, sorted.
        problems: One line for each folder that cannot be read.
    """

    root: Path
    paths: list[Path]
    problems: list[str]


def find_photos(source: Path, output: Path) -> Photos:
    """List the images of an input: `source` itself, or all below it; logs what is left out.

    The output folder is left out, and so are folders with results of an earlier run, unless
    `source` itself is one. Symbolic links to folders are not followed.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: `source` has no images, is the output folder, or is a pipe or a device.
    """
    if source.is_file():
        return Photos(root=source.parent, paths=[source], problems=[])
    if source.exists() and not source.is_dir():
        raise ValueError(f"input={printable(source)}: a pipe or a device, not a file or folder")
    if not source.is_dir():
        raise FileNotFoundError(f"input={printable(source)}: no such file or folder")
    if source.resolve() == output.resolve():
        raise ValueError(f"output={printable(output)} is the input folder; choose another one")
    takes_results = holds_results(source, os.listdir(source))

    def is_left_out(folder: Path, names: Sequence[str]) -> bool:
        if folder.resolve() == output.resolve():
            return True
        return not takes_results and holds_results(folder, names)

    listing = walk_images(source, is_left_out=is_left_out, follow_links=False)
    notes = [
        f"{printable(folder)} is left out: it holds results; to use them, give it as input"
        for folder in listing.folders
        if folder.resolve() != output.resolve()
    ]
    if summary := listing.summary():
        notes.append(f"{printable(source)}: {summary}")
    if not listing.images and not listing.problems:
        raise ValueError("; ".join([f"input={printable(source)}: {no_images(listing)}", *notes]))
    for note in notes:
        log.warning("%s", note)
    return Photos(root=source, paths=listing.images, problems=listing.problems)
