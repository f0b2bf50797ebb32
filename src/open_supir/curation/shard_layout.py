"""The layout of the shards: which kept sample goes into which shard, and where in it."""

import itertools
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from open_supir.curation.tables import read_rows, write_rows
from open_supir.curation.thresholds import MEASURES, stored_rows
from open_supir.curation.work import (
    Process,
    Unit,
    digest,
    digest_all,
    read_done,
    unit_folder,
)

SHARD_ROWS = pa.schema(
    [(n, pa.string()) for n in ("key", "unit")]
    + [("index", pa.int32()), ("caption", pa.string()), ("meta", pa.string())]
)
PLACED = SHARD_ROWS.append(pa.field("place", pa.int64()))
BLOCK = 100_000  # rows in memory at a time, about 1 KB each
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardLayoutStep:
    """Says which sample goes into which shard."""

    source: str  # name of the source: the folder of its shards, and the first part of their names
    origin: str  # the step whose tars hold the samples: `filter`, or `negatives`
    shard_size: int = 1000  # samples per shard
    # permute all samples by a hash of key and seed; else keep the order of the input
    shuffle: bool = True
    seed: int = 0  # of the permutation
    scores: bool = True  # store the scores with each sample

    def __post_init__(self) -> None:
        if self.shard_size < 1 or not re.fullmatch(r"[A-Za-z0-9_-]+", self.source):
            raise ValueError(
                "shards needs shard_size >= 1 and a source (also negatives.source) of letters, "
                f"digits, _ and -; got {self.shard_size} and {self.source!r}"
            )

    @property
    def name(self) -> str:
        """Return the step's name, one per source."""
        return f"shards-layout-{self.source}"

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        return vars(self)

    def open(self) -> Process:
        """Return the function that processes the step's only unit."""
        return self._lay_out

    def _lay_out(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Write a listing for each shard.

        Memory holds about 50 bytes per sample, and the rows of BLOCK samples; the other rows are on
        disk, in the parts that they belong to.
        """
        root, units = Path(unit.inputs["root"]), unit.inputs["units"]
        places = self._places(root, units)
        size = max(1, BLOCK // self.shard_size) * self.shard_size  # samples a part: whole shards
        captions: Counter[str] = Counter()
        contents = {}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            rows = (row for name in units for row in self._rows(root, name))
            _write_parts(Path(scratch), rows, places, size)
            for part in range(math.ceil(len(places) / size)):
                for number, shard in self._shards(Path(scratch), part, size):
                    write_rows(folder / f"{number:06d}.parquet", shard, SHARD_ROWS)
                    contents[f"{number:06d}"] = digest_all(
                        repr(sorted(row.items())) for row in shard
                    )
                    captions.update(_caption_words(row) for row in shard)
        words = dict(sorted(captions.items(), key=lambda item: (len(item[0]), item[0])))
        return {"samples": len(places), "shards": contents, "captions": words}

    def _places(self, root: Path, units: list[str]) -> np.ndarray:
        """Return the place of each row, (N,) int64, by a hash of its key.

        Raises:
            ValueError: A key occurs twice.
        """
        hashes = (self._order(key) for name in units for key in self._keys(root, name))
        order = np.fromiter(hashes, dtype=np.uint64)
        values, counts = np.unique(order, return_counts=True)
        shared = set(values[counts > 1].tolist())
        if shared:  # by a key that comes twice, or, once in 10^5 sets of 20M, by chance
            keys = (key for name in units for key in self._keys(root, name))
            suspects = [key for key in keys if self._order(key) in shared]
            twice = len(suspects) - len(set(suspects))
            if twice:
                raise ValueError(
                    f"{twice} keys occur twice; with filter.keep_keys=true the keys of all input "
                    "tars must differ"
                )
        places = np.arange(len(order))
        if self.shuffle:
            places[np.argsort(order, kind="stable")] = np.arange(len(order))
        return places

    def _order(self, key: str) -> int:
        return int(digest("order", self.seed, key), 16)

    def _shards(self, scratch: Path, part: int, size: int) -> Iterator[tuple[int, list[Row]]]:
        """Yield number and rows of each shard of a part."""
        rows = [row for file in scratch.glob(f"{part}-*.parquet") for row in read_rows(file)]
        rows.sort(key=itemgetter("place"))
        for row in rows:
            del row["place"]
        for start in range(0, len(rows), self.shard_size):
            yield (part * size + start) // self.shard_size, rows[start : start + self.shard_size]

    def _keys(self, root: Path, unit: str) -> list[str]:
        """Return the keys of `_rows`."""
        if self.origin == "negatives":
            return _negatives_of(root, unit)["keys"]
        rows = read_rows(_captions_of(root, unit), ["key", "error"])
        return [row["key"] for row in rows if row["error"] is None]

    def _rows(self, root: Path, unit: str) -> Iterator[Row]:
        if self.origin == "negatives":
            made = _negatives_of(root, unit)
            for index, key in enumerate(made["keys"]):
                row = {"key": key, "unit": unit, "index": index, "meta": "{}"}
                yield row | {"caption": made["caption"]}
            return
        scores = _scores_by_key(root, unit) if self.scores else {}
        for row in read_rows(_captions_of(root, unit)):
            if row.pop("error") is None:
                base = {name: row.pop(name) for name in ("key", "index", "caption")}
                meta: dict[str, Any] = {}
                parts = {name: text for name, text in row.items() if text}
                meta |= {"captions": parts} if parts else {}
                meta |= {"scores": scores[base["key"]]} if base["key"] in scores else {}
                yield {**base, "unit": unit, "meta": json.dumps(meta, sort_keys=True)}


def _captions_of(root: Path, unit: str) -> Path:
    return unit_folder(root, "caption", unit) / "rows.parquet"


def _negatives_of(root: Path, unit: str) -> dict[str, Any]:
    done = read_done(unit_folder(root, "negatives", unit))
    return done["statistics"] if done else {"keys": [], "caption": None}


def _scores_by_key(root: Path, unit: str) -> dict[str, dict[str, float]]:
    (stored,) = stored_rows(root, [unit], MEASURES, scores=True)
    return {
        row.pop("key"): {name: round(value, 4) for name, value in row.items() if value is not None}
        for row in stored.table.to_pylist()
    }


def _write_parts(scratch: Path, rows: Iterator[Row], places: np.ndarray, size: int) -> None:
    """Write each row, with its place, into a file of the part that it belongs to."""
    numbered = zip(places.tolist(), rows, strict=True)
    for block in itertools.count():
        parts: dict[int, list[Row]] = {}
        for place, row in itertools.islice(numbered, BLOCK):
            parts.setdefault(place // size, []).append(row | {"place": place})
        if not parts:
            return
        for part, part_rows in parts.items():
            write_rows(scratch / f"{part}-{block}.parquet", part_rows, PLACED)


def _caption_words(row: Row) -> str:
    """Return the words of a caption, rounded down to a multiple of 16; "none" without one."""
    words = len((row["caption"] or "").split())
    return str(words // 16 * 16) if words else "none"
