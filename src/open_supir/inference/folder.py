"""Folders of photographs: which files to restore, and where results go."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_supir.base.images.listing import IMAGE_SUFFIXES
from open_supir.base.images.write import SUFFIXES
from open_supir.inference.options import RestoreOptions


@dataclass(frozen=True)
class Job:
    """One image: its file, its path within the input, and the files to write."""

    source: Path
    name: str
    targets: tuple[Path, ...]

    @property
    def record(self) -> Path:
        """Path of the record, which is written after all targets."""
        return self.targets[0].with_name(self.targets[0].name + ".json")


def find_photos(source: Path, output: Path) -> tuple[Path, list[Path], list[str]]:
    """List the files to restore, sorted.

    All files with a known suffix are listed, except hidden ones and those in the output folder.
    Symbolic links to folders are not followed.

    Returns:
        The folder that names are relative to, the files, and one line for each folder that cannot
        be read.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: `source` has no images, or is the output folder.
    """
    if source.is_file():
        return source.parent, [source], []
    if not source.is_dir():
        raise FileNotFoundError(f"input={printable(source)}: no such file or folder")
    if source.resolve() == output.resolve():
        raise ValueError(f"output={printable(output)} is the input folder; choose another one")
    found, problems = [], []

    def unreadable(error: OSError) -> None:
        problems.append(f"{printable(error.filename)}: {error.strerror}")

    for folder, folders, names in os.walk(source, onerror=unreadable):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != output.resolve()
        ]
        found += [
            here / name
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    if not found and not problems:
        raise ValueError(
            f"input={printable(source)}: no images; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    return source, sorted(found), problems


def plan_jobs(
    paths: Sequence[Path], root: Path, output: Path, options: RestoreOptions
) -> list[Job]:
    """Choose the targets of each image, mirroring the input's tree below `output`.

    If images differ only in suffix, their targets keep it in the name; if names still collide,
    ignoring case, a hash is added. Control characters become underscores.

    Raises:
        ValueError: A target is one of the inputs.
    """
    suffix = SUFFIXES[options.format]

    def targets(name: Path, stem: str) -> tuple[Path, ...]:
        stem = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "_" for c in stem)
        numbers = ["", *(f"_{n}" for n in range(2, options.num_samples + 1))]
        return tuple(output / name.parent / f"{stem}{number}{suffix}" for number in numbers)

    names = [path.relative_to(root) for path in paths]
    planned = [targets(name, name.stem) for name in names]
    for retry in (lambda name: name.name, _hashed):
        claims: dict[str, int] = {}
        for files in planned:
            for file in files:
                claims[_caseless(file)] = claims.get(_caseless(file), 0) + 1
        planned = [
            targets(name, retry(name)) if any(claims[_caseless(f)] > 1 for f in files) else files
            for name, files in zip(names, planned, strict=True)
        ]
    inputs = {os.path.realpath(path) for path in paths}
    for files in planned:
        for file in files:
            if os.path.realpath(file) in inputs:
                raise ValueError(f"{printable(file)} is an input; choose another output folder")
    return [
        Job(path, str(name), files) for path, name, files in zip(paths, names, planned, strict=True)
    ]


def printable(path: object) -> str:
    """Return a path or message as one line, with control characters and invalid bytes escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path)
    )


def _hashed(name: Path) -> str:
    return f"{name.name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _caseless(path: Path) -> str:
    return str(path).casefold()
