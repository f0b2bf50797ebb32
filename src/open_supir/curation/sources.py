"""Inputs: folders of images, folders of tars, Parquet lists of paths, split into units.

The listing is written once and kept, so a resumed run sees the same units without walking through
millions of files again. `rescan` looks again: new files go into new units, and a changed file
makes its unit new.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from open_supir.base.files import replacing, write_text
from open_supir.curation.tables import read_rows, read_table, write_rows
from open_supir.curation.work import Unit, digest, digest_all

log = logging.getLogger(__name__)

LISTING = "listing"
TAR = ".tar"
# path is the file, in the bytes of the file system, for names need not be text; size and mtime tell
# changes
INPUT_ROWS = pa.schema(
    [("path", pa.binary())]
    + [(n, pa.string()) for n in ("key", "source", "licence", "caption")]
    + [("size", pa.int64()), ("mtime", pa.int64())]
    # of what is no input: why it is left out
    + [("reason", pa.string()), ("detail", pa.string())]
)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Where the candidates are."""

    # Source name -> a folder of images, a folder of tars, a tar, or a Parquet file with a column
    # `path` (optionally `caption`, `source`, `licence`). Relative paths in a Parquet file are
    # relative to its folder.
    paths: Mapping[str, str]
    # source name -> licence of samples that do not state one
    licences: Mapping[str, str] = field(default_factory=dict)
    unit_size: int = 1000  # images per unit; a tar is always its own unit
    exclude: tuple[str, ...] = ()  # folders to skip: those that the pipeline itself writes

    def __post_init__(self) -> None:
        if not self.paths or self.unit_size < 1:
            raise ValueError(
                f"input needs at least one path and unit_size >= 1, got {dict(self.paths)} and "
                f"{self.unit_size}"
            )
        unknown = set(self.licences) - set(self.paths)
        if unknown:
            raise ValueError(f"licence names sources that are not in input: {sorted(unknown)}")


def name_inputs(paths: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return source name -> path; the default name is that of the file or folder.

    Raises:
        ValueError: Two inputs would have the same name.
    """
    if isinstance(paths, Mapping):
        return dict(paths)
    paths = [paths] if isinstance(paths, str) else list(paths)
    named = {Path(path).resolve().stem: path for path in paths}
    if len(named) < len(paths):
        raise ValueError(
            f"two inputs have the same name among {paths}; name them: input={{one: ..., two: ...}}"
        )
    return named


def list_units(settings: InputSettings, root: Path, *, rescan: bool = False) -> list[Unit]:
    """Return the units of the first step, from the listing below `root`, which is made if missing.

    Raises:
        FileNotFoundError: An input is missing.
        ValueError: An input holds nothing usable, or the listing was made for other inputs.
    """
    folder = root / LISTING
    paths = {name: str(_absolute(path)) for name, path in settings.paths.items()}
    about = {"paths": paths, "licences": dict(settings.licences)}
    about |= {"unit_size": settings.unit_size}
    known = _read_listing(folder)
    if known is not None and known["about"] != about:
        raise ValueError(
            f"{folder} was made for other inputs ({known['about']}); set another output, or "
            "delete it"
        )
    if known is None or rescan:
        known = _make_listing(settings, folder, about, known)
    return [
        Unit(
            name,
            content,
            {"listing": str(folder / f"{name}.parquet"), "kind": kind},
        )
        for name, kind, content in known["units"]
    ]


def _read_listing(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "listing.json").read_bytes())
    except (OSError, ValueError):
        return None


def listing_id(root: Path) -> str:
    """Return 16 hexadecimal digits that stand for the inputs of the listing below `root`."""
    known = _read_listing(root / LISTING)
    assert known is not None  # every run makes it first
    return digest(known["about"])


def _make_listing(
    settings: InputSettings, folder: Path, about: dict[str, Any], known: dict[str, Any] | None
) -> dict[str, Any]:
    """List the inputs and write the listing; units of an earlier one keep their names."""
    found: dict[str, dict[str, Row]] = {"files": {}, "tar": {}}
    twice = 0
    for source, path in settings.paths.items():
        for kind, row in _list_input(source, _absolute(path), settings):
            row |= {"key": digest("key", source, row.pop("name"))}
            twice += row["key"] in found[kind]
            found[kind].setdefault(row["key"], row)
    if twice:
        log.warning("%d inputs are listed twice and used once", twice)
    if known is None:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    units = []
    for name, kind, _ in known["units"] if known else []:
        rows = read_rows(folder / f"{name}.parquet")
        fresh = [found[kind].pop(row["key"], row) for row in rows]
        units.append(_write_unit(folder, name, kind, fresh))
    for kind, size in (("files", settings.unit_size), ("tar", 1)):
        rows = list(found[kind].values())
        for start in range(0, len(rows), size):
            name = f"{len(units):06d}"
            units.append(_write_unit(folder, name, kind, rows[start : start + size]))
    content = {"about": about, "units": units}
    write_text(folder / "listing.json", json.dumps(content, indent=1))
    log.info("listing: %d units", len(units))
    return content


def _write_unit(folder: Path, name: str, kind: str, rows: Sequence[Row]) -> tuple[str, str, str]:
    """Write the rows of a unit; return its entry in listing.json."""
    path = folder / f"{name}.parquet"
    with replacing(path) as temporary:
        write_rows(temporary, rows, INPUT_ROWS)
    names = [name for name in INPUT_ROWS.names if name not in ("reason", "detail")]
    said = (repr([row.get(n) for n in names]) + str(row.get("reason") or "") for row in rows)
    return name, kind, digest_all(said)


def _list_input(source: str, path: Path, settings: InputSettings) -> Iterator[tuple[str, Row]]:
    """Yield (kind, row) for each file of an input; `name` is its path below the input.

    Everything else below the input is yielded too, with a reason.
    """
    common = {"source": source, "licence": settings.licences.get(source)}
    if path.suffix == ".parquet" and path.is_file():
        yield from (("files", row) for row in _listed_in_table(path, common))
        return
    for kind, file, reason in _files(path, [Path(e).resolve() for e in settings.exclude]):
        name = file.name if file == path else utf8_of(file.relative_to(path))
        why = dict(zip(("reason", "detail"), reason, strict=False))
        yield kind, {**common, "path": os.fsencode(file), "name": name, **_stat(file), **why}


def _files(path: Path, exclude: Sequence[Path]) -> Iterator[tuple[str, Path, Sequence[str]]]:
    """Yield (kind, file, reason and detail if it is left out) for what is at or below a path.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: There are neither images nor tars.
    """
    from open_supir.base.images.listing import list_images, no_images, walk_images

    if not path.is_dir():
        files = [path] if path.suffix == TAR else list_images(path)
        yield from (("tar" if file.suffix == TAR else "files", file, ()) for file in files)
        return
    own = [e for e in exclude if e != path.resolve() and e.is_relative_to(path.resolve())]
    listing = walk_images(path, is_left_out=lambda folder, names: folder.resolve() in own)
    tars = [file for file in listing.others if file.suffix == TAR and file.is_file()]
    if not tars and not listing.images:
        raise ValueError(f"{path}: {no_images(listing)}")
    for problem in listing.problems:
        log.warning("left out: %s", problem)
    yield from (("tar", tar, ()) for tar in tars)
    yield from (("files", image, ()) for image in listing.images)
    beside = {file.parent for file in tars}
    for file, reason, detail in listing.refusals(taken=(TAR,)):
        if not (file.parent in beside and file.suffix in (".json", ".parquet")):  # img2dataset's
            yield "files", file, (reason, detail)


def _absolute(path: str) -> Path:
    """Return an absolute path, valid in workers wherever they are started."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _listed_in_table(path: Path, common: Row) -> Iterator[Row]:
    table = read_table(path)
    if "path" not in table.column_names:
        raise ValueError(
            f"{path}: no column 'path'; it has {', '.join(table.column_names)} (for URLs, run "
            "img2dataset first, and give its tars as input)"
        )
    wanted = ("path", "caption", "source", "licence", "license")
    for row in table.select([n for n in wanted if n in table.column_names]).to_pylist():
        name = os.fsdecode(row["path"]) if isinstance(row["path"], bytes) else str(row["path"])
        if "://" in name:
            raise ValueError(
                f"{path}: {name} is not a path; run img2dataset first, and give its tars as input"
            )
        file = path.parent / name
        given = {n: str(value) for n, value in row.items() if value is not None}
        if american := given.pop("license", None):
            given.setdefault("licence", american)
        place = {"path": os.fsencode(file), "name": utf8_of(name)}
        yield {**common, **given, **place, **_stat(file)}


def _stat(path: Path) -> dict[str, int | None]:
    """Return size and modification time; None for a missing file, which the filter reports."""
    try:
        stat = path.stat()
    except OSError:
        return {"size": None, "mtime": None}
    return {"size": stat.st_size, "mtime": stat.st_mtime_ns}


def utf8_of(path: str | bytes | Path) -> str:
    """Return a path as valid UTF-8 text."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_digest(data: bytes) -> str:
    """Return the digest that identifies the bytes of an image."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
