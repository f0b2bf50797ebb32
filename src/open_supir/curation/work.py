"""The unit of work: one shard of one step, done atomically and only once.

A finished unit is a folder `ROOT/STEP/UNIT/` with a `done.json` that describes it. The folder is
filled under a temporary name and renamed, so a killed process leaves nothing that looks finished.
The unit's key covers everything that determines the output; if the key in `done.json` differs, the
unit is redone.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from open_supir.base.files import flush

log = logging.getLogger(__name__)

DONE = "done.json"
VERSION = 2  # of the steps' output; raise it when old output must be redone


@dataclass(frozen=True)
class Unit:
    """One shard of one step."""

    name: str  # name of the unit and its folder
    content: str  # digest of everything it reads
    inputs: Mapping[str, Any] = field(default_factory=dict)  # where its inputs are, as plain values


# Fills a folder and returns statistics, which tell later steps whether the result has changed
Process = Callable[[Unit, Path], Mapping[str, Any]]


class CurationStep(Protocol):
    """What is done to each unit. Steps are cheap to create; `open` loads what the work needs."""

    @property
    def name(self) -> str:
        """Name of the step and its folder."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output besides the units, as plain values."""
        ...

    def open(self) -> Process:
        """Return the function that does the work; called once in each worker."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """Something expensive that workers build for themselves: a model, a captioner.

    `about` says what it is, as plain values; `build` makes it and can be sent to other processes.
    """

    about: Mapping[str, Any]
    build: Callable[[], Any]


def digest(*parts: Any) -> str:
    """Return a digest of plain values, 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def digest_all(parts: Iterable[str]) -> str:
    """Return a digest of texts without line breaks, 16 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part.encode() + b"\n")
    return state.hexdigest()


def unit_key(step: CurationStep, unit: Unit) -> str:
    """Return the key that `done.json` must contain for the unit to count as done."""
    return digest(VERSION, step.name, dict(step.settings()), unit.content)


def unit_folder(root: Path, step: str, unit: str) -> Path:
    """Return the folder of a finished unit."""
    return root / step / unit


def read_done(folder: Path) -> dict[str, Any] | None:
    """Return the content of a unit's `done.json`; None if it is missing or unreadable."""
    try:
        content = json.loads((folder / DONE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "key" in content else None


def is_done(root: Path, step: CurationStep, unit: Unit) -> bool:
    """Return whether the unit is finished, with the same inputs and settings."""
    done = read_done(unit_folder(root, step.name, unit.name))
    return done is not None and done["key"] == unit_key(step, unit)


def run_unit(process: Process, step: CurationStep, unit: Unit, root: Path) -> None:
    """Do one unit, unless it is already done.

    Raises:
        Exception: Whatever `process` raises; the final folder is then unchanged.
    """
    if is_done(root, step, unit):
        return
    final = unit_folder(root, step.name, unit.name)
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final)
    temporary = final.with_name(f".{unit.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    temporary.mkdir()
    start = time.time()
    try:
        statistics = dict(process(unit, temporary))
        record = {
            "key": unit_key(step, unit),
            "result": digest(unit_key(step, unit), statistics),
            "step": step.name,
            "unit": unit.name,
            "seconds": round(time.time() - start, 3),
            "statistics": statistics,
        }
        (temporary / DONE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for path in temporary.rglob("*"):
            flush(path)
        _replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(final: Path) -> None:
    """Delete leftovers of killed attempts at a unit."""
    for left in final.parent.glob(f".{final.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _replace(temporary: Path, final: Path) -> None:
    """Rename a folder; an existing target is moved away first, as it cannot be overwritten."""
    if final.exists():
        old = final.with_name(f".{final.name}.old.{os.getpid()}.tmp")
        os.replace(final, old)
        shutil.rmtree(old, ignore_errors=True)
    os.replace(temporary, final)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Lock a folder of units for one run; the lock is released whenever the process ends.

    Raises:
        ValueError: Another run holds the lock.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{root}: another run writes into this output; wait for its end, or give another"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s (%s); do not start a second run", root, error)
        yield
