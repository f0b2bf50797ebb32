"""Results: names of the files that a command writes, and records that say which files are its own.

A record is a JSON file that lists what was written, by name and SHA-256, before it is written. Only
files that a record names may be replaced without being asked for.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Container, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from open_supir.base.files import printable, sha256_of

MANIFEST = "degraded.jsonl"  # the record of a whole folder; other records stand beside their image
KEPT = "it is kept: set overwrite=true to replace it, or choose another output folder"
LINE_START = '{"name": "'
LONGEST_NAME = 255  # bytes, on ordinary file systems


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a record that we wrote; None if the file is missing, damaged or not ours.

    The lines of a `.jsonl` are its outputs; one that was being appended at the end is left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            *lines, rest = text.split("\n")
            if not LINE_START.startswith(rest[: len(LINE_START)]):
                return None
            record = {"outputs": [json.loads(line) for line in lines]}
        else:
            record = json.loads(text)
        _named(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record


def claim(record: Path, *, overwrite: bool = False) -> list[dict[str, str]]:
    """Return which files the record names, as they are now: only these are ours.

    The next record takes them over, so that they stay ours whatever happens before they are
    replaced.

    Raises:
        FileExistsError: The record is somebody else's, and `overwrite` is not set.
    """
    held = read_record(record)
    if held is None and os.path.lexists(record) and not overwrite:
        raise FileExistsError(f"{printable(record)} is not a record of this command; {KEPT}")
    kept = []
    for name, digest in sorted(_named(held or {"outputs": []})):
        file = record.parent / name
        if file.is_file() and sha256_of(file) == digest:
            kept.append({"name": name, "sha256": digest})
    return kept


def refuse_foreign(target: Path, ours: Container[Path]) -> None:
    """Raise FileExistsError if a file exists that is not among ours."""
    if os.path.lexists(target) and target not in ours:
        raise FileExistsError(
            f"{printable(target)} was not written by this command, or was changed since; {KEPT}"
        )


def holds_results(folder: Path, names: Sequence[str]) -> bool:
    """Return whether a folder holds a record that we wrote."""
    beside = set(names)
    records = [
        name
        for name in names
        if name == MANIFEST or (name.endswith(".json") and name.removesuffix(".json") in beside)
    ]
    return any(read_record(folder / name) is not None for name in records)


def choose_files(
    names: Sequence[Path],
    files_of: Callable[[str, Path], tuple[Path, ...]],
    source_of: Callable[[Path], str | None],
) -> list[tuple[Path, ...]]:
    """Choose the files that each input is written to.

    An input keeps the files that it has. Otherwise they are named after its stem; where that is
    taken, ignoring case, after its whole name, and then with a hash. What is not printable becomes
    an underscore, and names that are too long are shortened, with a hash.

    Args:
        names: Inputs, relative to their folder.
        files_of: Returns the files for a stem and an input.
        source_of: Returns the name of the input that a first file was made from, as recorded.
    """
    choices = [
        [files_of(_fitting(stem), name) for stem in (name.stem, name.name, _hashed(name))]
        for name in names
    ]
    sources = [[source_of(files[0]) for files in choice] for choice in choices]
    at = [
        found.index(name.name) if name.name in found else 0
        for found, name in zip(sources, names, strict=True)
    ]
    has = [name.name in found for found, name in zip(sources, names, strict=True)]
    for _ in range(2):
        claims: Counter[str] = Counter()
        settled: Counter[str] = Counter()
        for number, choice in enumerate(choices):
            files = [_caseless(file) for file in choice[at[number]]]
            claims.update(files)
            settled.update(files if has[number] else ())
        for number, choice in enumerate(choices):
            counted = settled if has[number] else claims
            clash = any(counted[_caseless(file)] > 1 for file in choice[at[number]])
            taken = not has[number] and sources[number][at[number]] not in (
                None,
                names[number].name,
            )
            if (clash or taken) and at[number] < 2:
                at[number], has[number] = at[number] + 1, False
    return [choice[index] for choice, index in zip(choices, at, strict=True)]


def _named(record: dict[str, Any]) -> set[tuple[str, str]]:
    items = [*record["outputs"], *record.get("sidecars", ()), *record.get("earlier", ())]
    return {(str(item["name"]), str(item["sha256"])) for item in items}


def _fitting(stem: str) -> str:
    """Return a stem that is printable, and leaves room for a number, a suffix and `.json`."""
    stem = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "_" for c in stem)
    limit, raw = LONGEST_NAME - len(".invented") - len(".webp") - len(".json"), os.fsencode(stem)
    if len(raw) <= limit:
        return stem
    digest = sha256(raw).hexdigest()[:8]
    return f"{raw[: limit - 9].decode('utf-8', 'ignore')}-{digest}"


def _hashed(name: Path) -> str:
    return f"{name.name}-{sha256(os.fsencode(name)).hexdigest()[:8]}"


def _caseless(path: Path) -> str:
    return str(path).casefold()
