"""Folders: the one way in which everything that looks for images, tars or texts walks through them.

Hidden files and folders are passed over. Linked folders are followed, each folder once, so that
links in a circle come to an end.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Skip = Callable[[Path, str], None]
IsLeftOut = Callable[[Path, Sequence[str]], bool]

LINKED = "link to a folder"
TWICE = "folder is read already"


def walk(
    root: Path, skip: Skip, *, follow_links: bool = True, is_left_out: IsLeftOut | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder from `root` down, with the sorted names of its entries except folders.

    Names may be links that lead nowhere, pipes, and anything else that is no folder.

    Args:
        root: Where to start; yielded too.
        skip: Called with (folder, reason) for each folder that is not walked.
        follow_links: Whether linked folders are walked too; otherwise they are skipped.
        is_left_out: Called with each folder and the names of its files; true passes it over in
            silence, with all below.
    """
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        skip(Path(error.filename), f"folder cannot be listed ({error.strerror})")

    for place, folders, names in os.walk(root, onerror=unreadable, followlinks=follow_links):
        here = Path(place)
        about = here.stat()
        if (about.st_dev, about.st_ino) in seen:
            skip(here, TWICE)
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        if is_left_out is not None and is_left_out(here, names):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not follow_links:
            for name in folders:
                if (here / name).is_symlink():
                    skip(here / name, LINKED)
        yield here, sorted(name for name in names if not name.startswith("."))
