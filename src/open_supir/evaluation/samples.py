"""Samples: one input of a benchmark each, and what takes its place where it cannot be used."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """One input of a benchmark.

    Attributes:
        name: Unique among the images.
        lq, hq: (1, 3, H, W) in [0, 1]; hq is None where there is no reference.
        source: The file it was read from; captions lie beside it.
        degradation: How `lq` was made of `hq`, as JSON values; empty where that is not known.
        small: `lq` before the protocol enlarged it; None where it did not.
    """

    name: str
    lq: Tensor
    hq: Tensor | None
    source: Path | None = None
    degradation: Mapping[str, Any] = MappingProxyType({})
    small: Tensor | None = None


Method = Callable[[Sample], Tensor]  # returns the restored image, of the size of hq


@dataclass(frozen=True, kw_only=True)
class BrokenSample:
    """Stands among the samples for an input that could not be used; it is recorded by name."""

    name: str
    reason: str


def as_json(value: Any) -> Any:
    """Return a value as JSON would give it back: tuples as lists, infinities as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
