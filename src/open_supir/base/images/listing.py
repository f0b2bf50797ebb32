"""Which files of a folder are images."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_supir.base.files import printable
from open_supir.base.images.kinds import START_BYTES, kind_of, wanting

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".avif", ".heic", ".heif", ".jxl",
)  # fmt: skip
KINDS = {".avif": "avif", ".heic": "heic", ".heif": "heic", ".jxl": "jxl"}  # some need a library
SIDECARS = (".txt", ".json", ".xmp")  # belong to the image of their name
SHOWN_SUFFIXES = 12

IsLeftOut = Callable[[Path, Sequence[str]], bool]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The image files below a folder, and what else is there.

    Attributes:
        images: Sorted. Whether they can be read shows when they are.
        left_out: Number of other files by suffix, and of linked folders, which are not followed.
        folders: Folders that were left out.
        problems: One line for each folder that cannot be listed.
    """

    images: list[Path]
    left_out: Counter[str]
    folders: list[Path]
    problems: list[str]

    def summary(self) -> str:
        """Return what was left out as one line; "" if nothing was."""
        if not self.left_out:
            return ""
        said = []
        ranked = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        for suffix, count in ranked[:SHOWN_SUFFIXES]:
            needed = wanting(KINDS.get(suffix, ""))
            said.append(f"{printable(suffix)} {count}" + (f" ({needed})" if needed else ""))
        if len(self.left_out) > SHOWN_SUFFIXES:
            said.append(f"and {len(self.left_out) - SHOWN_SUFFIXES} more kinds")
        total = self.left_out.total()
        return f"{total} file{'s' * (total > 1)} left out: {', '.join(said)}"


def walk_images(folder: Path, *, is_left_out: IsLeftOut = lambda folder, names: False) -> Listing:
    """List the image files below a folder: by suffix, and others by their first bytes.

    Hidden files and folders are passed over in silence, and so are texts, records and XMP beside an
    image of their name.

    Args:
        folder: Where to start.
        is_left_out: Called with each folder and the names in it; true leaves it out, with all
            below.
    """
    listing = Listing(images=[], left_out=Counter(), folders=[], problems=[])

    def unreadable(error: OSError) -> None:
        listing.problems.append(f"{printable(error.filename)}: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        if is_left_out(here, names):
            listing.folders.append(here)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        listing.left_out["links to folders"] += sum((here / name).is_symlink() for name in folders)
        shown = [name for name in names if not name.startswith(".")]
        found = {name for name in shown if _is_image(here / name)}
        listing.images.extend(here / name for name in found)
        known = found | {Path(name).stem for name in found}
        for name in set(shown) - found:
            stem, suffix = os.path.splitext(name)
            if not (suffix.lower() in SIDECARS and stem in known):
                listing.left_out[suffix.lower() or "no suffix"] += 1
    listing.images.sort()
    return Listing(
        images=listing.images,
        left_out=+listing.left_out,
        folders=sorted(listing.folders),
        problems=listing.problems,
    )


def list_images(path: str | Path) -> list[Path]:
    """List the image file `path`, or all image files below the folder `path`, sorted.

    Other files are counted in the log.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` is a file that is no image, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        if not _is_image(path):
            raise ValueError(
                f"{path}: not an image file; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
            )
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    listing = walk_images(path)
    if not listing.images:
        raise ValueError(f"{path}: {no_images(listing)}")
    if summary := listing.summary():
        log.info("%s: %s", path, summary)
    return listing.images


def no_images(listing: Listing) -> str:
    """Say that a folder holds no images, and what it holds instead."""
    summary = listing.summary()
    return (
        f"no images in this folder{f' ({summary})' if summary else ''}; "
        f"known suffixes: {' '.join(IMAGE_SUFFIXES)}"
    )


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return not wanting(KINDS.get(suffix, ""))
    try:
        if not path.is_file():  # opening a pipe would wait
            return False
        with path.open("rb") as file:
            kind = kind_of(file.read(START_BYTES))
    except OSError:
        return False
    # raw photographs are TIFFs by their bytes, with a small preview as image
    return kind != "" and not wanting(kind) and (kind != "tiff" or not suffix)
