"""Folders of photographs: which files to restore, and where results go."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_supir.base.files import printable
from open_supir.base.images.write import SUFFIXES
from open_supir.base.results import choose_files, read_record
from open_supir.inference.disagreement import LEAST_SAMPLES
from open_supir.inference.options import RestoreOptions
from open_supir.inference.region import mask_of


@dataclass(frozen=True)
class Job:
    """One image: its file, its path within the input, and the files to write.

    These are its samples, their average if that is asked for, and the map of what they invented.
    """

    source: Path
    name: str
    targets: tuple[Path, ...]
    mask: Path | None = None

    @property
    def record(self) -> Path:
        """Path of the record, which names all targets."""
        return _record_of(self.targets[0])


def plan_jobs(
    paths: Sequence[Path], root: Path, output: Path, options: RestoreOptions
) -> list[Job]:
    """Choose the targets of each image, mirroring the input's tree below `output`.

    See `choose_files` for images that differ only in suffix; records tell what an image has. The
    mask in the options is none of the images.

    Raises:
        FileNotFoundError: The mask in the options does not exist.
        ValueError: A target is one of the inputs.
    """
    suffix = SUFFIXES[options.format]

    def targets(stem: str, name: Path) -> tuple[Path, ...]:
        folder, count = output / name.parent, options.num_samples
        numbers = ["", *(f"_{n}" for n in range(2, count + 1))]
        numbers += [".average"] if options.average else []
        files = [folder / f"{stem}{number}{suffix}" for number in numbers]
        files += [folder / f"{stem}.invented.png"] if count >= LEAST_SAMPLES else []
        return tuple(files)

    if options.mask is not None:
        mask = os.path.realpath(options.mask)
        paths = [path for path in paths if os.path.realpath(path) != mask]
    names = [path.relative_to(root) for path in paths]
    planned = choose_files(names, targets, _source_of)
    inputs = {os.path.realpath(path) for path in paths}
    for files in planned:
        for file in files:
            if os.path.realpath(file) in inputs:
                raise ValueError(f"{printable(file)} is an input; choose another output folder")
    return [
        Job(path, str(name), files, mask_of(path, options.mask))
        for path, name, files in zip(paths, names, planned, strict=True)
    ]


def _record_of(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _source_of(target: Path) -> str | None:
    record = read_record(_record_of(target)) or {}
    name = (record.get("input") or {}).get("name")
    return None if name is None else Path(name).name
