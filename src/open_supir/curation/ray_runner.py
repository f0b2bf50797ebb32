"""Runner on Ray: this machine, or a cluster whose nodes share the output folder."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_supir.curation.runners import ATTEMPTS, OpenError, Outcome, describe, open_step, try_unit
from open_supir.curation.work import CurationStep, Unit

log = logging.getLogger(__name__)

EXTRA = "install with: pip install -e '.[curation]'"


@dataclass(frozen=True, kw_only=True)
class RayRunner:
    """Ray actors; each loads what the step needs once.

    An actor that dies, by a kill, a lost node or lack of memory, is replaced, which costs its unit
    one attempt.
    """

    # address of a running cluster, such as `auto`; None starts Ray on this machine
    address: str | None = None
    num_workers: int = -1  # number of actors; -1 takes as many as the cluster has room for
    num_cpus: float = 1.0  # CPUs per actor
    num_gpus: float = 0.0  # GPUs per actor; a fraction such as 0.5 puts two actors on one GPU
    memory: int | None = None  # bytes per actor beyond which Ray may kill it; None sets no limit
    # size of Ray's object store in bytes if started here; little passes through it
    object_store: int = 80 << 20
    attempts: int = ATTEMPTS  # maximum attempts per unit

    def __post_init__(self) -> None:
        if self.num_workers < -1 or self.num_workers == 0 or self.attempts < 1:
            raise ValueError(
                "runner needs num_workers >= 1, or -1 for as many as fit, and "
                f"attempts >= 1, got {self.num_workers} and {self.attempts}"
            )

    def run(self, step: CurationStep, units: Sequence[Unit], root: Path) -> Iterator[Outcome]:
        """Yield the outcome of every unit as it completes; see Runner.

        Raises:
            ImportError: Ray is not installed (extra `curation`).
            ValueError: Ray has no room for even one worker, which would wait forever.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"runner=ray needs Ray; {EXTRA}") from error
        if not ray.is_initialized():  # later steps reuse it; it ends with this process
            self._start(ray)
        actors: list[Any] = []
        try:
            options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            options |= {"memory": self.memory} if self.memory is not None else {}
            make = ray.remote(**options)(Actor)

            def start() -> Any:
                return make.remote(step, str(root.resolve()))

            room = self._room(ray)
            count = min(len(units), room if self.num_workers < 0 else self.num_workers)
            if count > room and self.address is None:  # the rest would never start
                count = room
            actors = [start() for _ in range(count)]
            yield from self._share_out(ray, actors, start, units)
        finally:
            for actor in actors:
                ray.kill(actor)

    def _start(self, ray: Any) -> None:
        here: dict[str, Any] = {}
        if self.address is None:
            here = {"object_store_memory": self.object_store, "include_dashboard": False}
        ray.init(address=self.address, logging_level=logging.WARNING, log_to_driver=False, **here)

    def _room(self, ray: Any) -> int:
        total = ray.cluster_resources()
        room = [total.get("CPU", 1) / self.num_cpus if self.num_cpus else total.get("CPU", 1)]
        room += [total.get("GPU", 0) / self.num_gpus] if self.num_gpus else []
        if min(room) < 1 and self.address is None:  # a cluster may grow
            has = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
            raise ValueError(
                f"Ray has {has}, too few for a worker with runner.num_cpus={self.num_cpus:g} and "
                f"runner.num_gpus={self.num_gpus:g}"
            )
        return max(1, int(min(room)))

    def _share_out(
        self, ray: Any, actors: list[Any], start: Callable[[], Any], units: Sequence[Unit]
    ) -> Iterator[Outcome]:
        """Keep every actor busy; replace dead ones, which costs their unit an attempt.

        Ray could restart an actor by itself, but would fail other units' calls meanwhile.
        """
        waiting = deque((unit, 1) for unit in units)
        busy: dict[Any, tuple[Any, Unit, int]] = {}
        idle = list(actors)
        while waiting or busy:
            while waiting and idle:
                actor, (unit, attempt) = idle.pop(), waiting.popleft()
                busy[actor.do.remote(unit)] = (actor, unit, attempt)
            (ready, *_), _ = ray.wait(list(busy))
            actor, unit, attempt = busy.pop(ready)
            error, lives = self._answer(ray, ready)
            if not lives:
                ray.kill(actor)
                actors.remove(actor)
                actor = start()
                actors.append(actor)
            idle.append(actor)
            if error is None or attempt >= self.attempts:
                yield Outcome(unit.name, attempt, error)
            else:
                log.warning("%s: %s; retrying", unit.name, error)
                waiting.append((unit, attempt + 1))

    def _answer(self, ray: Any, ready: Any) -> tuple[str | None, bool]:
        """Return a unit's error, or None, and whether its actor is alive."""
        try:
            kind, error = ray.get(ready)
        except ray.exceptions.RayError as failure:  # killed, out of memory, node lost
            return f"the worker died ({describe(failure)[:300]})", False
        if kind == "open":
            raise OpenError(error)
        return error, True


class Actor:
    """Runs in Ray's workers."""

    def __init__(self, step: CurationStep, root: str) -> None:
        self.step, self.root = step, Path(root)
        self.process: Any = None

    def do(self, unit: Unit) -> tuple[str, str | None]:
        """Do a unit; return ("done", error or None), or ("open", error) if loading failed."""
        if self.process is None:
            try:
                self.process = open_step(self.step)
            except OpenError as error:
                return "open", str(error)
        return "done", try_unit(self.process, self.step, unit, self.root)
