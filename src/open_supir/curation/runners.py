"""Runners do the units of a step; the one here uses processes on this machine."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from open_supir.curation.work import CurationStep, Process, Unit, run_unit

log = logging.getLogger(__name__)

ATTEMPTS = 3
HEAVY = ["open_supir.curation.filters"]  # imported once for all workers


class OpenError(RuntimeError):
    """A worker could not load what the step needs, so no unit can be done."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a unit; `error` is None if it is done."""

    unit: str
    attempts: int
    error: str | None = None


class Runner(Protocol):
    """Does the units of a step, in any order."""

    def run(self, step: CurationStep, units: Sequence[Unit], root: Path) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it completes.

        A unit that fails, or whose worker dies, is retried; the others continue.

        Raises:
            OpenError: The step could not load what it needs.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LocalRunner:
    """Processes on this machine; each loads what the step needs once."""

    num_workers: int = -1  # number of processes; 0 works in this one, -1 is one per core
    num_gpus: int = 0  # GPUs to distribute among the processes; each sees one
    attempts: int = ATTEMPTS  # maximum attempts per unit

    def __post_init__(self) -> None:
        if self.num_workers < -1 or self.num_gpus < 0 or self.attempts < 1:
            raise ValueError(
                "runner needs num_workers >= -1, num_gpus >= 0 and attempts >= 1, got "
                f"{self.num_workers}, {self.num_gpus} and {self.attempts}"
            )

    def run(self, step: CurationStep, units: Sequence[Unit], root: Path) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it completes; see Runner."""
        if self.num_workers == 0:
            yield from self._run_here(step, units, root)
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        count = min(len(units), cores or 1 if self.num_workers < 0 else self.num_workers)
        context: Any = multiprocessing.get_context("forkserver")  # fork is unsafe with threads
        context.set_forkserver_preload(HEAVY)
        threads = max(1, (cores or 1) // count)
        workers = [
            _Worker(context, step, root, gpu=self._gpu(number), threads=threads)
            for number in range(count)
        ]
        try:
            yield from self._share_out(workers, units)
        finally:
            for worker in workers:
                worker.stop()

    def _gpu(self, number: int) -> int | None:
        return number % self.num_gpus if self.num_gpus else None

    def _run_here(self, step: CurationStep, units: Sequence[Unit], root: Path) -> Iterator[Outcome]:
        process = open_step(step)
        for unit in units:
            attempt, error = 1, try_unit(process, step, unit, root)
            while error is not None and attempt < self.attempts:
                attempt, error = attempt + 1, try_unit(process, step, unit, root)
            yield Outcome(unit.name, attempt, error)

    def _share_out(self, workers: list["_Worker"], units: Sequence[Unit]) -> Iterator[Outcome]:
        """Keep every worker busy; replace dead ones, which costs their unit an attempt."""
        waiting = deque((unit, 1) for unit in units)
        busy: dict[Connection, _Worker] = {}
        idle = list(workers)
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                worker.give(*waiting.popleft())
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy.pop(connection)
                error = worker.answer()
                unit, attempt = worker.unit, worker.attempt
                idle.append(worker)
                if error is None or attempt >= self.attempts:
                    yield Outcome(unit.name, attempt, error)
                else:
                    log.warning("%s: %s; retrying", unit.name, error)
                    waiting.append((unit, attempt + 1))


class _Worker:
    """A worker process at the other end of a pipe."""

    def __init__(
        self, context: Any, step: CurationStep, root: Path, *, gpu: int | None, threads: int
    ) -> None:
        self.context, self.arguments = context, (step, root, gpu, threads, os.getpid())
        self.start()

    def start(self) -> None:
        self.connection, theirs = self.context.Pipe()
        self.process = self.context.Process(
            target=_serve, args=(theirs, *self.arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, unit: Unit, attempt: int) -> None:
        self.unit, self.attempt = unit, attempt
        with contextlib.suppress(OSError):  # a dead worker is noticed by `answer`
            self.connection.send(unit)

    def answer(self) -> str | None:
        """Return the unit's error, or None; replace a dead process."""
        try:
            kind, error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.connection.close()
            self.start()
            cause = f"signal {-code}" if code and code < 0 else f"exit status {code}"
            return f"the worker process died ({cause})"
        if kind == "open":
            raise OpenError(error)
        return error

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(
    connection: Connection,
    step: CurationStep,
    root: Path,
    gpu: int | None,
    threads: int,
    starter: int,
) -> None:
    """Do units from the pipe until it closes or the process that started this one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter handles interrupts
    threading.Thread(target=_leave_with, args=(starter,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    try:
        process = open_step(step, threads)
    except OpenError as error:
        with contextlib.suppress(OSError, EOFError):
            connection.recv()
            connection.send(("open", str(error)))
        return
    with contextlib.suppress(OSError, EOFError):
        while True:
            unit = connection.recv()
            connection.send(("done", try_unit(process, step, unit, root)))


def _leave_with(starter: int) -> None:
    """End this process soon after the one that started it is gone."""
    while True:
        try:
            os.kill(starter, 0)
        except OSError:
            os._exit(1)
        time.sleep(0.2)


def open_step(step: CurationStep, threads: int | None = None) -> Process:
    """Load what a step needs; `threads`, if given, limits torch's threads.

    Raises:
        OpenError: Loading failed; the message says why.
    """
    try:
        process = step.open()
    except Exception as error:
        raise OpenError(f"step {step.name}: {describe(error)}") from error
    torch = sys.modules.get("torch")  # many steps do not need it
    if threads is not None and torch is not None:
        torch.set_num_threads(threads)
    return process


def try_unit(process: Process, step: CurationStep, unit: Unit, root: Path) -> str | None:
    """Do a unit; return its error, or None. One bad unit never ends a run."""
    try:
        run_unit(process, step, unit, root)
    except Exception as error:
        log.debug("unit %s of %s", unit.name, step.name, exc_info=True)
        return describe(error)
    return None


def describe(error: BaseException) -> str:
    """Return an exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
