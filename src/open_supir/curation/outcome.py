"""What came out of a run: a line or two of words for the end, and a table of every image."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from open_supir.base.files import replacing
from open_supir.curation.tables import read_rows
from open_supir.curation.thresholds import MEASURES
from open_supir.curation.work import read_done, unit_folder

SHOWN = 8  # reasons


def write_image_list(path: Path, root: Path, units: Iterable[str], metrics: Sequence[str]) -> None:
    """Write a CSV of every image: path, key, reason ("" if kept), detail and scores.

    Args:
        units: Names of the filter's units.
        metrics: Names of the score step's metrics.
    """
    scores = (*MEASURES, *metrics)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "key", "reason", "detail", *scores])
        for unit in units:
            chosen = read_rows(unit_folder(root, "select", "all") / f"{unit}.parquet")
            reasons = {row["key"]: row["reason"] for row in chosen}
            scored = unit_folder(root, "score", unit) / "rows.parquet"
            more = {row["key"]: row for row in read_rows(scored)} if scored.is_file() else {}
            columns = ["path", "key", "reason", "detail", *MEASURES]
            for row in read_rows(unit_folder(root, "filter", unit) / "rows.parquet", columns):
                reason = row["reason"] or reasons.get(row["key"], "")
                values = row | more.get(row["key"], {})
                numbers = [_short(values.get(name)) for name in scores]
                writer.writerow([row["path"], row["key"], reason, row["detail"] or "", *numbers])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def say_outcome(settings: Any, root: Path, filtered: Sequence[Mapping[str, Any]]) -> str:
    """Describe a run's result: images kept, refused and why, where they are, what to run next.

    Args:
        settings: Of the pipeline.
        root: Folder of the units.
        filtered: The `done.json` of the filter's units.
    """
    selected = read_done(unit_folder(root, "select", "all"))
    assert selected is not None  # the step has just run
    refused = Counter(selected["statistics"]["refused"])
    for done in filtered:
        refused.update(done["statistics"]["refused"])
    kept = selected["statistics"]["kept"]
    report = Path(settings.output) / "report"
    lines = [f"kept {kept} of {kept + refused.total()} images"]
    if refused:
        ranked = [f"{reason} {count}" for reason, count in refused.most_common(SHOWN)]
        ranked += [f"and {len(refused) - SHOWN} more reasons"] * (len(refused) > SHOWN)
        lines.append(f"refused {refused.total()}: {', '.join(ranked)}")
    lines.append(f"each image, its reason and scores: {report / 'images.csv'}")
    lines.append(f"pictures on both sides of each threshold: {report / 'index.html'}")
    if not kept:
        return "\n".join([*lines, "nothing is kept: change thresholds.bounds.NAME, or filter.*"])
    return "\n".join([*lines, *_shards(settings, root)])


def _shards(settings: Any, root: Path) -> list[str]:
    source, shards = settings.positives.source, Path(settings.shards_dir)
    done = read_done(unit_folder(root, settings.positives.name, "all"))
    manifest = shards / source / "manifest.json"
    if done is None or not manifest.is_file():
        return ["next: the other steps, with step=all"]
    entries = json.loads(manifest.read_bytes())["shards"]
    count = sum(entry["count"] for entry in entries)
    lines = [f"shards: {manifest.parent}, {count} samples in {len(entries)} tars"]
    if bare := done["statistics"]["captions"].get("none", 0):
        lines.append(
            f"{bare} images have no caption; the same command with captioner=local "
            "captioner.model=NAME makes captions"
        )
    place = settings.output if shards == Path(settings.output) / "shards" else shards
    data = f"data=folder {quote(f'data.root={place}')}"
    if source != "positive":
        data = f"data=shards {quote(f'data.root={shards}')} data.heldout=DIR"
    return [*lines, f"next: python -m src.train experiment=zerosft {data}"]
