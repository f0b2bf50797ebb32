"""Which files of a folder are images."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from open_supir.base.files import printable
from open_supir.base.folders import LINKED, IsLeftOut, walk
from open_supir.base.images.kinds import DEVELOP, START_BYTES, is_raw, kind_of, wanting

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".avif", ".heic", ".heif", ".jxl",
)  # fmt: skip
KINDS = {".avif": "avif", ".heic": "heic", ".heif": "heic", ".jxl": "jxl"}  # some need a library
MASK_SUFFIX = ".mask.png"
SIDECARS = (".txt", ".json", ".xmp", MASK_SUFFIX)  # belong to the image of their name
ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
SHOWN_SUFFIXES = 12


@dataclass(kw_only=True)
class ImageListing:
    """The image files below a folder, and what else is there.

    Attributes:
        images: Sorted. Whether they can be read shows when they are.
        others: Files that are not images, sorted, except hidden ones and those beside an image.
        skipped: Folders that were not walked, each with the reason.
        folders: Folders that were left out.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """One line for each folder that could not be walked, for another reason than its links."""
        return [f"{printable(path)}: {why}" for path, why in self.skipped if why != LINKED]

    @property
    def left_out(self) -> Counter[str]:
        """Number of other files by suffix, and of links to folders."""
        counts = Counter(path.suffix.lower() or "no suffix" for path in self.others)
        counts["links to folders"] = sum(reason == LINKED for _, reason in self.skipped)
        return +counts

    def refusals(self, taken: Sequence[str] = ()) -> Iterator[tuple[Path, str, str]]:
        """Yield path, reason and detail of everything but the images.

        Args:
            taken: Suffixes of other files that the caller reads.
        """
        for path in self.others:
            if not path.name.lower().endswith(tuple(taken)):
                yield path, *_why_not(path)
        for path, reason in self.skipped:
            yield path, reason, ""

    def summary(self) -> str:
        """Return what was left out as one line; "" if nothing was."""
        left_out = self.left_out
        if not left_out:
            return ""
        said = []
        ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        for suffix, count in ranked[:SHOWN_SUFFIXES]:
            needed = DEVELOP if is_raw(suffix) else wanting(KINDS.get(suffix, ""))
            said.append(f"{printable(suffix)} {count}" + (f" ({needed})" if needed else ""))
        if len(left_out) > SHOWN_SUFFIXES:
            said.append(f"and {len(left_out) - SHOWN_SUFFIXES} more kinds")
        total = left_out.total()
        return f"{total} file{'s' * (total > 1)} left out: {', '.join(said)}"


def walk_images(
    folder: Path, *, is_left_out: IsLeftOut | None = None, follow_links: bool = True
) -> ImageListing:
    """List the image files below a folder: by suffix, and others by their first bytes.

    Hidden files and folders are passed over in silence, and so are texts, records, XMP and masks
    beside an image of their name (photo.txt and photo.jpg.txt beside photo.jpg).

    Args:
        folder: Where to start.
        is_left_out: Called with each folder and the names in it; true leaves it out, with all
            below.
        follow_links: Whether linked folders are walked.
    """
    listing = ImageListing()

    def leaves_out(here: Path, names: Sequence[str]) -> bool:
        left_out = is_left_out is not None and is_left_out(here, names)
        listing.folders.extend([here] * left_out)
        return left_out

    def skip(place: Path, reason: str) -> None:
        listing.skipped.append((place, reason))

    for here, names in walk(folder, skip, follow_links=follow_links, is_left_out=leaves_out):
        found = {name for name in names if _is_image(here / name)}
        known = {text.lower() for name in found for text in (name, Path(name).stem)}
        beside = {name for name in names if _without_sidecar(name.lower()) in known}
        listing.images.extend(here / name for name in found - beside)
        listing.others.extend(here / name for name in set(names) - found - beside)
    for paths in (listing.images, listing.others, listing.skipped, listing.folders):
        paths.sort()
    return listing


def list_images(path: str | Path) -> list[Path]:
    """List the image file `path`, or all image files below the folder `path`, sorted.

    Other files are counted in the log.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` is a file that is no image, a folder without images, a pipe or a device.
    """
    path = Path(path)
    if path.is_file():
        if not _is_image(path):
            known = f"known suffixes: {' '.join(IMAGE_SUFFIXES)}"
            hint = DEVELOP if is_raw(path.name) else known
            raise ValueError(f"{path}: not an image file; {hint}")
        return [path]
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: a pipe or a device, not a file or folder")
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    listing = walk_images(path)
    if not listing.images:
        raise ValueError(f"{path}: {no_images(listing)}")
    if summary := listing.summary():
        log.info("%s: %s", path, summary)
    for problem in listing.problems:
        log.warning("left out: %s", problem)
    return listing.images


def no_images(listing: ImageListing) -> str:
    """Return a message that a folder holds no images, and what it holds instead."""
    summary = listing.summary()
    return (
        f"no images in this folder{f' ({summary})' if summary else ''}; "
        f"known suffixes: {' '.join(IMAGE_SUFFIXES)}"
    )


def _without_sidecar(name: str) -> str | None:
    return next((name.removesuffix(s) for s in SIDECARS if name.endswith(s)), None)


def _why_not(path: Path) -> tuple[str, str]:
    """Return why a file is not read as an image: reason and detail."""
    if not path.exists():
        return "link leads nowhere", str(path.readlink()) if path.is_symlink() else ""
    if not path.is_file():
        return "not a regular file", ""
    suffix = path.suffix.lower()
    if needed := wanting(KINDS.get(suffix, "")):
        return "library missing", needed
    if suffix in ARCHIVES:
        return "archive", "unpack it"
    if is_raw(path.name):
        return "not an image", f"{suffix}, {DEVELOP}"
    return "not an image", suffix or "no suffix"


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
