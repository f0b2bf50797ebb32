"""The selection: which stored images are kept or why not, by thresholds and duplicates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from open_supir.curation.tables import read_rows, write_rows
from open_supir.curation.thresholds import MEASURES, Thresholds, column, stored_rows
from open_supir.curation.work import Process, Unit, digest_all, unit_folder

ROWS = pa.schema([("key", pa.string()), ("index", pa.int32()), ("reason", pa.string())])


@dataclass(frozen=True, kw_only=True)
class SelectStep:
    """Applies the thresholds to all units at once; writes one table per unit."""

    thresholds: Thresholds

    name = "select"

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output besides the tables."""
        return self.thresholds.plain()

    def open(self) -> Process:
        """Return the function that processes the step's only unit."""
        return self._select

    def _select(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Write `UNIT.parquet` with key, position in the tar, and reason ("" if kept)."""
        root, units = Path(unit.inputs["root"]), unit.inputs["units"]
        gone = {}
        if unit.inputs["dedup"]:
            rows = read_rows(unit_folder(root, "dedup", "all") / "rows.parquet", ["key", "reason"])
            gone = {row["key"]: row["reason"] for row in rows}
        cuts = self._cuts(root, units)
        counts: Counter[str] = Counter()
        kept: dict[str, tuple[int, str]] = {}
        for stored in stored_rows(root, units, self._columns(), scores=True):
            keys = stored.table.column("key").to_pylist()
            reasons = [
                reason or gone.get(key, "")
                for key, reason in zip(keys, self.thresholds.judge(stored.table, cuts), strict=True)
            ]
            counts.update(reasons)
            rows = [
                {"key": key, "index": index, "reason": reason}
                for index, (key, reason) in enumerate(zip(keys, reasons, strict=True))
            ]
            write_rows(folder / f"{stored.unit}.parquet", rows, ROWS)
            names = [row["key"] for row in rows if not row["reason"]]
            kept[stored.unit] = (len(names), digest_all(names))
        kept_count = counts.pop("", 0)
        return {"kept": kept_count, "refused": dict(counts), "units": kept, "cuts": cuts}

    def _columns(self) -> list[str]:
        return [n for n in (*self.thresholds.bounds, *self.thresholds.top) if n in MEASURES]

    def _cuts(self, root: Path, units: list[str]) -> dict[str, float]:
        """Return score -> lowest value in its top share of the rows within all bounds."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in self.thresholds.top}
        if values:
            for stored in stored_rows(root, units, self._columns(), scores=True):
                within = self.thresholds.judge(stored.table) == ""
                for name in values:
                    if name in stored.table.column_names:
                        values[name].append(column(stored.table, name)[within])
        joined = {name: np.concatenate(v) for name, v in values.items() if v}
        return {
            name: float(np.nanquantile(v, 1 - self.thresholds.top[name]))
            for name, v in joined.items()
            if np.isfinite(v).any()
        }


def kept_rows(root: Path, unit: str) -> list[dict[str, Any]]:
    """Return key and index of a unit's kept images."""
    rows = read_rows(unit_folder(root, "select", "all") / f"{unit}.parquet")
    return [row for row in rows if not row["reason"]]
