"""Tables computed once per device."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

_KEPT: dict[tuple[str, ...], Tensor] = {}


def cached(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a function's results by its arguments: numbers, names and devices.

    `functools.lru_cache` does not help: `torch.compile` traces through it and rebuilds the table in
    every run. A table that is in this dict before compilation becomes an input of the graph.
    """

    def call(*args: Any) -> Tensor:
        key = (function.__module__, function.__name__, *map(str, args))
        if key not in _KEPT:
            _KEPT[key] = function(*args)
        return _KEPT[key]

    return call
