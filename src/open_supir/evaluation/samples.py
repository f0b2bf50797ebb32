"""Samples, the inputs of a benchmark, and placeholders for inputs that cannot be used."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from open_supir.base.images import to_uint8, to_unit


class Sample(NamedTuple):
    """One input of a benchmark."""

    name: str  # unique among the images
    lq: Tensor  # (1, 3, H, W) in [0, 1]
    hq: Tensor | None  # likewise; None if there is no reference
    source: Path | None = None  # the file it was read from; captions are beside it
    degradation: Mapping[str, Any] = MappingProxyType({})  # how `lq` was made from `hq`, as JSON
    small: Tensor | None = None  # `lq` before the protocol enlarged it; None if it did not


class Output(NamedTuple):
    """A restored image, sized like hq, and values that its method computes without a reference."""

    image: Tensor  # (1, 3, H, W) in [0, 1]
    values: Mapping[str, float] = MappingProxyType({})  # by name: columns beside the metrics


Method = Callable[[Sample], Tensor | Output]  # a plain tensor is an Output's image


@dataclass(frozen=True, kw_only=True)
class BrokenSample:
    """Placeholder for an input that cannot be used; it is recorded by name."""

    name: str
    reason: str


def rounded_to_8_bits(image: Tensor) -> Tensor:
    """Return a unit image as a file would give it back, on the CPU."""
    return to_unit(to_uint8(image.detach().cpu()))


def as_json(value: Any) -> Any:
    """Return a value as it survives a JSON round trip: tuples as lists, infinities as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
