"""Tables that are made once a device."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

_KEPT: dict[tuple[str, ...], Tensor] = {}


def cached(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep what a function returned for its numbers, names and devices.

    `functools.lru_cache` would not do: `torch.compile` looks through it and makes the table again
    in every run. A table that is in this dict before compilation is an input of the graph.
    """

    def call(*args: Any) -> Tensor:
        key = (function.__module__, function.__name__, *map(str, args))
        if key not in _KEPT:
            _KEPT[key] = function(*args)
        return _KEPT[key]

    return call
