"""Ranks: lets the processes of a run agree on a decision at the same step, on the CPU."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """Small all-reduces over all ranks, on the CPU.

    They use their own gloo group, so they never wait for a GPU and work in the middle of a step.
    Without distributed processes, each call returns its arguments.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def join(self) -> None:
        """Create the group; every rank must call this at the same point."""
        if self._group is None and dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """Return the maxima over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    @property
    def count(self) -> int:
        """Number of ranks."""
        return 1 if self._group is None else dist.get_world_size(self._group)

    def _reduce(self, values: tuple[float, ...], op: dist.ReduceOp.RedOpType) -> list[float]:
        numbers: Tensor = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(numbers, op, group=self._group)
        return numbers.tolist()
