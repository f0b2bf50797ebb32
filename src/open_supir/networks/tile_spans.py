"""How a side of an image is split into tiles that overlap."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """A tile's extent along one side: what it reads, and within that its own share (core)."""

    start: int
    core_start: int
    core_stop: int
    stop: int
    length: int  # of the canvas
    ramp: int

    def own_share(self, side: int) -> slice:
        """Return where the core is in what became of the tile, which has this side now."""
        read = self.stop - self.start
        first, last = self.core_start - self.start, self.core_stop - self.start
        return slice(first * side // read, last * side // read)

    def is_near(self, other: "Span") -> bool:
        """Return whether the other's output, with its ramp, touches this one's own share."""
        start, stop = other.core_start - other.ramp, other.core_stop + other.ramp
        return start < self.core_stop and self.core_start < stop

    def profile(self, scaled: Callable[[int], int], device: torch.device) -> Tensor:
        """Return the weights of the tile's output; those of all tiles sum to 1 everywhere.

        Args:
            scaled: Position on the canvas -> position in the output.
        """
        x = torch.arange(scaled(self.start), scaled(self.stop), device=device) + 0.5
        weight = torch.ones_like(x)
        if self.core_start > 0:
            weight = _fade(x - scaled(self.core_start), scaled(self.ramp))
        if self.core_stop < self.length:
            weight = weight - _fade(x - scaled(self.core_stop), scaled(self.ramp))
        return weight


def spans(length: int, tile: int, *, halo: int, ramp: int, multiple: int) -> list[Span]:
    """Split a side into shares of about equal length, at most `tile`."""
    count = math.ceil(length / tile)
    edges = [round(i * length / count / multiple) * multiple for i in range(count)] + [length]
    return [
        Span(
            max(0, start - ramp - halo), start, stop, min(length, stop + ramp + halo), length, ramp
        )
        for start, stop in pairwise(edges)
    ]


def _fade(distance: Tensor, ramp: int) -> Tensor:
    """Rise smoothly from 0 to 1 between distances -`ramp` and `ramp`."""
    if ramp == 0:
        return (distance > 0).float()
    return 0.5 + 0.5 * (distance / ramp).clamp(-1, 1).mul(math.pi / 2).sin()
