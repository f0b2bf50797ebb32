"""The unit of work: one shard of one step, done whole or not at all, and done once.

A finished unit is a folder `ROOT/STEP/UNIT/` whose `done.json` says what it was made of and from.
It is filled under a temporary name and renamed, so whoever is killed leaves nothing that looks
finished. Whatever decides the output is in the unit's key: where the key in `done.json` is another,
the unit is made again.
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
VERSION = 1  # of what the steps write; raise it when old output must be made again


@dataclass(frozen=True)
class Unit:
    """One shard of one step.

    Attributes:
        name: Its name, and its folder's.
        content: Digest of all that it reads.
        inputs: Where that is; plain values.
    """

    name: str
    content: str
    inputs: Mapping[str, Any] = field(default_factory=dict)


# Fills a folder and returns statistics, from which later steps see whether the result has changed
Process = Callable[[Unit, Path], Mapping[str, Any]]


class Step(Protocol):
    """What is done to every unit. Describing a step is cheap; `open` loads what the work needs."""

    @property
    def name(self) -> str:
        """The step's name, and its folder's."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Return all that decides the output besides the units, as plain values."""
        ...

    def open(self) -> Process:
        """Return the function that does the work; called once in each worker."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Something expensive that workers build for themselves: a model, a captioner.

    `about` says what it is, as plain values; `build` makes it and can be sent to other processes.
    """

    about: Mapping[str, Any]
    build: Callable[[], Any]


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits that stand for plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def digest_all(parts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that stand for a sequence of texts without line breaks."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part.encode() + b"\n")
    return state.hexdigest()


def unit_key(step: Step, unit: Unit) -> str:
    """Return what must stand in `done.json` for the unit to count as done."""
    return digest(VERSION, step.name, dict(step.settings()), unit.content)


def unit_folder(root: Path, step: str, unit: str) -> Path:
    """Return where a finished unit lies."""
    return root / step / unit


def read_done(folder: Path) -> dict[str, Any] | None:
    """Return the content of a unit's `done.json`; None where there is none that can be read."""
    try:
        content = json.loads((folder / DONE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "key" in content else None


def is_done(root: Path, step: Step, unit: Unit) -> bool:
    """Say whether the unit lies finished, made from the same input in the same way."""
    done = read_done(unit_folder(root, step.name, unit.name))
    return done is not None and done["key"] == unit_key(step, unit)


def run_unit(process: Process, step: Step, unit: Unit, root: Path) -> None:
    """Do one unit, unless it is done.

    Raises:
        Exception: Whatever `process` raises; nothing is left under the final name.
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
    """Delete what killed attempts at a unit have left."""
    for left in final.parent.glob(f".{final.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _replace(temporary: Path, final: Path) -> None:
    """Rename a folder onto one that may exist: a folder with content cannot be replaced at once."""
    if final.exists():
        old = final.with_name(f".{final.name}.old.{os.getpid()}.tmp")
        os.replace(final, old)
        shutil.rmtree(old, ignore_errors=True)
    os.replace(temporary, final)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold a folder of units for one run; the lock goes with the process, however that ends.

    Raises:
        ValueError: Another run holds it.
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
            log.warning("%s cannot be locked (%s); start no second run", root, error)
        yield
