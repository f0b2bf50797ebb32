"""The processes of one command: each does a share of the work, the first one reports for all."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among `count`; processes can communicate if `is_grouped`."""

    rank: int = 0
    count: int = 1
    is_grouped: bool = False

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this process's part of the items."""
        return list(items[self.rank :: self.count])

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; the others receive it instead of making it."""
        if not self.is_grouped:
            return make()
        made: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(made)
        return made[0]

    def gathered(self, lines: list[str]) -> list[str]:
        """Return the lines of all processes in the first one, and none in the others.

        Waits for all processes: torchrun kills all as soon as one fails, so none may fail before
        all are done.
        """
        if not self.is_grouped:
            return lines
        everyones: list[Any] = [None] * self.count
        dist.all_gather_object(everyones, lines)
        return [line for share in everyones for line in share] if self.rank == 0 else []


@contextmanager
def this_process() -> Iterator[Process]:
    """Yield this process; under torchrun, it joins a group with the others inside the block."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    is_grouped = count > 1 and dist.is_torchelastic_launched()
    if is_grouped:
        dist.init_process_group("gloo", timeout=timedelta(days=30))
    yield Process(rank, count, is_grouped)
    if is_grouped:
        dist.destroy_process_group()
