"""Curation: time and memory of the steps that process all units at once, on tables without images.

Run: python -m benchmarks.bench_curation_global --units 100 1000 --folder DIR
A unit has 1,000 images: their measures, hashes and captions as the filter and caption steps write
them, about 3 % of them duplicates. Each step runs in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from open_supir.curation.caption import ROWS as CAPTION_ROWS
from open_supir.curation.dedup import DedupStep
from open_supir.curation.filters import ROWS as FILTER_ROWS
from open_supir.curation.pipeline import Pipeline, PipelineSettings
from open_supir.curation.runners import LocalRunner
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.sources import LISTING, InputSettings
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep
from open_supir.curation.thresholds import MEASURES, Thresholds
from open_supir.curation.work import DONE, Blueprint, Unit, unit_folder, unit_key

UNIT = 1000
CAPTION = 450  # characters, about what LLaVA says in 100 tokens
DUPLICATES = 0.03
NEGATIVES = 100_000
SHARD = {"shard": {"name": "none.tar", "num_samples": UNIT, "bytes": 0, "sha256": ""}}


def settings(folder: Path) -> PipelineSettings:
    """Return a pipeline over `folder`, with every step but score."""
    fit = FilterStep()
    return PipelineSettings(
        input=InputSettings(paths={"made": str(folder)}, unit_size=UNIT),
        filter=fit,
        score=None,
        dedup=DedupStep(fit=fit),
        thresholds=Thresholds(bounds={"sharpness": {"min": 0.1, "max": 0.95}}),
        caption=CaptionStep(captioner=None, cache=str(folder / "captions")),
        negatives=NegativeStep(prior=Blueprint({}, dict), words="blurry"),
        num_negatives=NEGATIVES,
        positives=ShardLayoutStep(source="positive", origin="filter"),
        negative_shards=ShardLayoutStep(source="negative", origin="negatives"),
        output=str(folder),
        shards_dir=str(folder / "shards"),
    )


class Tables(Pipeline):
    """The pipeline over synthetic tables: only the global part of each step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(settings(folder), LocalRunner(num_workers=0))
        listing = self.root / LISTING / "listing.json"
        self.listed = [Unit(name, name) for name in listing.read_text().split()]

    def select_only(self) -> None:
        self._do(self.select, [self._select_unit()], here=True)

    def plan_negatives(self) -> None:
        assert self.settings.negatives is not None
        self._negative_units(self.settings.negatives)

    def plan_shards(self) -> None:
        layout, origin = self.settings.positives, self._captioned()
        inputs = {"root": str(self.root), "units": [name for name, _ in origin]}
        self._do(layout, [Unit("all", "made", inputs)], here=True)


def filter_tables(folder: Path, units: int) -> None:
    """Write the listing and what the filter would have written."""
    rng = np.random.default_rng(0)
    names = [f"{number:06d}" for number in range(units)]
    step, root = settings(folder).filter, folder / "work"
    earlier = np.zeros(1, np.uint64)
    for name in names:
        hashes = rng.integers(0, 2**64, UNIT, dtype=np.uint64)
        again = rng.random(UNIT) < DUPLICATES
        hashes[again] = rng.choice(earlier, int(again.sum()))
        earlier = hashes
        columns: dict[str, Any] = {
            "key": [rng.bytes(8).hex() for _ in range(UNIT)],
            "path": [f"folder/{name}/{row:04d}.jpg" for row in range(UNIT)],
            "phash": hashes,
            "original_height": np.full(UNIT, 1024),
            "original_width": np.full(UNIT, 1024),
            "bytes": rng.integers(400_000, 700_000, UNIT),
            **{measure: rng.random(UNIT) for measure in MEASURES},
        }
        _write(root, step, Unit(name, name), columns, FILTER_ROWS, SHARD | {"result": name})
    (root / LISTING).mkdir()
    (root / LISTING / "listing.json").write_text("\n".join(names))


def caption_tables(folder: Path) -> None:
    """Write what the caption step would have written for the selected images."""
    tables, rng = Tables(folder), np.random.default_rng(1)
    letters = np.array(list(string.ascii_lowercase + "     "))
    for unit in tables._caption_units():
        rows = pq.read_table(unit_folder(tables.root, "select", "all") / f"{unit.name}.parquet")
        rows = rows.filter(pa.array(rows.column("reason").to_numpy() == ""))
        text = "".join(rng.choice(letters, CAPTION * len(rows)))
        columns = {
            "key": rows.column("key"),
            "index": rows.column("index"),
            "caption": [text[n * CAPTION : (n + 1) * CAPTION] for n in range(len(rows))],
        }
        statistics = {"captioned": len(rows), "failed": 0}
        _write(tables.root, tables.settings.caption, unit, columns, CAPTION_ROWS, statistics)


def _write(
    root: Path, step: Any, unit: Unit, columns: dict, schema: pa.Schema, statistics: dict
) -> None:
    folder = unit_folder(root, step.name, unit.name)
    folder.mkdir(parents=True)
    count = len(columns["key"])
    whole = {n: columns.get(n, pa.nulls(count)) for n in schema.names}
    table = pa.table({n: pa.array(v).cast(schema.field(n).type) for n, v in whole.items()})
    pq.write_table(table, folder / "rows.parquet")
    done = {"key": unit_key(step, unit), "result": unit.name, "statistics": statistics}
    (folder / DONE).write_text(json.dumps(done))


def _measured(work: Callable[[Path], None], folder: Path, answers: Any) -> None:
    start, own = time.perf_counter(), time.process_time()
    work(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put((time.perf_counter() - start, time.process_time() - own, peak))


def dedup(folder: Path) -> None:
    Tables(folder)._run_dedup()


def select(folder: Path) -> None:
    Tables(folder).select_only()


def negatives(folder: Path) -> None:
    Tables(folder).plan_negatives()


def shards(folder: Path) -> None:
    Tables(folder).plan_shards()


def nothing(folder: Path) -> None:
    Tables(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--folder", type=Path, default=Path("data/bench_curation_global"))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{os.cpu_count()} cores {platform.machine()}, python {platform.python_version()}, "
          f"pyarrow {pa.__version__}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print("\n| images | step | s | CPU s | peak MiB |\n|---|---|---|---|---|")
    for units in options.units:
        shutil.rmtree(options.folder, ignore_errors=True)
        filter_tables(options.folder, units)
        for work in (nothing, dedup, select, caption_tables, negatives, shards):
            answers = context.Queue()
            process = context.Process(target=_measured, args=(work, options.folder, answers))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{work.__name__} failed")
            if work is not caption_tables:
                seconds, cpu, peak = answers.get()
                row = f"{work.__name__} | {seconds:.1f} | {cpu:.1f} | {peak:.0f}"
                print(f"| {units * UNIT} | {row} |", flush=True)
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
