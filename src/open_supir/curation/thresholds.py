"""Thresholds: select stored rows by their scores.

No images are read, so trying out thresholds is cheap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from open_supir.curation.tables import read_table
from open_supir.curation.work import unit_folder

MEASURES = (
    "aspect", "jpeg_quality", "sharpness", "focus", "flat", "dark", "bright", "luma", "contrast",
    "colour",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds on scores.

    Attributes:
        bounds: Score -> `min`, `max` or both, inclusive. A row without the score passes.
        top: Score -> share of the rows within all bounds to keep, those with the highest values.
    """

    bounds: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    top: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            unknown = set(bound) - {"min", "max"}
            low, high = bound.get("min"), bound.get("max")
            if unknown or (low is not None and high is not None and low > high):
                raise ValueError(
                    f"thresholds.bounds.{name} takes min and max, min <= max; got {dict(bound)}"
                )
        for name, share in self.top.items():
            if not 0 < share <= 1:
                raise ValueError(f"thresholds.top.{name} must be in (0, 1], got {share}")

    def check(self, known: Sequence[str]) -> None:
        """Check that all bounded scores are known.

        Raises:
            ValueError: A bound is on a score that is not in `known`; the message lists these.
        """
        for name in (*self.bounds, *self.top):
            if name not in known:
                raise ValueError(f"thresholds: no score {name!r}; known: {', '.join(known)}")

    def plain(self) -> dict[str, Any]:
        """Return the thresholds as plain values."""
        bounds = {n: {k: v for k, v in b.items() if v is not None} for n, b in self.bounds.items()}
        return {"bounds": bounds, "top": dict(self.top)}

    def only(self, names: Sequence[str]) -> "Thresholds":
        """Return only the bounds on these scores."""
        return Thresholds(bounds={n: b for n, b in self.bounds.items() if n in names})

    def edges(self) -> Iterator[tuple[str, str, float]]:
        """Yield (score, "min" or "max", value) of every bound."""
        for name, bound in self.plain()["bounds"].items():
            for side, value in bound.items():
                yield name, side, float(value)

    def judge(self, table: pa.Table, cuts: Mapping[str, float] | None = None) -> np.ndarray:
        """Return the first reason to refuse each row, "" if there is none.

        Args:
            table: Has the bounded scores as columns; missing columns are not checked.
            cuts: Score -> lowest value in its top share.
        """
        reasons = np.array([""] * len(table), dtype=object)
        edges = [*self.edges(), *((name, "top", cut) for name, cut in (cuts or {}).items())]
        for name, side, value in edges:
            if name in table.column_names:
                scores = column(table, name)
                out = scores > value if side == "max" else scores < value
                words = {"min": f"below {value:g}", "max": f"above {value:g}"}
                word = words.get(side, f"not in the top {self.top.get(name, 0):g}")
                reasons[out & (reasons == "")] = f"{name} {word}"
        return reasons


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return a numeric column as float64; nulls become NaN, which fails every comparison."""
    return table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)


class UnitRows(NamedTuple):
    """The rows of one unit's stored images, in the order of its tar, with their scores."""

    unit: str
    table: pa.Table


def stored_rows(
    root: Path, units: Sequence[str], columns: Sequence[str], *, scores: bool
) -> Iterator[UnitRows]:
    """Yield the rows stored by the filter, unit by unit; `scores` adds the score step's columns."""
    for unit in units:
        table = read_table(
            unit_folder(root, "filter", unit) / "rows.parquet", ["key", "reason", *columns]
        )
        table = table.filter(table.column("reason").is_null()).drop_columns(["reason"])
        path = unit_folder(root, "score", unit) / "rows.parquet"
        if scores and path.is_file():
            table = _joined(table, read_table(path))
        yield UnitRows(unit, table)


def _joined(table: pa.Table, scores: pa.Table) -> pa.Table:
    """Add the columns of `scores` by key, in the order of `table`."""
    place = {key: row for row, key in enumerate(scores.column("key").to_pylist())}
    rows = pa.array([place.get(key) for key in table.column("key").to_pylist()], pa.int64())
    for name in scores.column_names:
        if name != "key":
            table = table.append_column(name, scores.column(name).take(rows))
    return table
