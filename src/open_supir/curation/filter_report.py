"""The filter report: what was refused and why, with pictures on both sides of each threshold.

One HTML page for choosing thresholds by eye; a CSV file lists what could not be stored.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_supir.base.files import write_text
from open_supir.curation.reading import open_shard
from open_supir.curation.tables import read_rows
from open_supir.curation.thresholds import MEASURES, Thresholds, column, stored_rows
from open_supir.curation.work import read_done, unit_folder
from open_supir.reports.document import (
    Block,
    ContactSheet,
    Heading,
    Plot,
    Plots,
    Table,
    Text,
    render_html,
)
from open_supir.reports.figures import draw_histogram
from open_supir.reports.pictures import thumbnail
from open_supir.reports.tables import csv_table

NEAREST = 8  # pictures on each side of a threshold
THUMBNAIL = 112  # pixels
SHOWN = 200  # listed files that could not be stored


class StoredImages(NamedTuple):
    """Location and scores of every stored image."""

    units: list[str]
    unit: np.ndarray  # (N,) index into `units`
    index: np.ndarray  # (N,) position in that unit's tar
    scores: dict[str, np.ndarray]  # (N,) each, NaN where a score does not apply


def write_filter_report(path: Path, root: Path, thresholds: Thresholds) -> None:
    """Write the page, and `skipped.csv` beside it, from the finished filter and select steps.

    Raises:
        FileNotFoundError: The select step is not done.
    """
    selected = read_done(unit_folder(root, "select", "all"))
    if selected is None:
        raise FileNotFoundError(f"{root / 'select'}: nothing is selected yet")
    statistics = selected["statistics"]
    units = list(statistics["units"])
    skipped = _skipped(root, units)
    stored = _load(root, units)
    total = len(skipped) + len(stored.unit)
    refused = Counter(reason for _, reason, _ in skipped)
    refused.update(statistics["refused"])
    shares = [[why, str(count), f"{count / total:.2%}"] for why, count in refused.most_common()]
    edges: dict[str, list[tuple[str, float]]] = {}
    for name, side, value in thresholds.edges():
        edges.setdefault(name, []).append((side, value))
    for name, cut in statistics["cuts"].items():
        edges.setdefault(name, []).append(("min", cut))
    blocks: list[Block] = [
        Heading("Filter report", 1),
        Text(
            f"{total} candidates (tiles count), {len(stored.unit)} stored, "
            f"**{statistics['kept']} kept**."
        ),
        Heading("Refused"),
        Table(["reason", "images", "share"], shares),
    ]
    for name in stored.scores:
        blocks += _score_blocks(root, stored, name, edges.get(name, []))
    header = ["path", "reason", "detail"]
    if skipped:
        blocks += [
            Heading(f"Could not be stored: {len(skipped)}"),
            Text(f"The first {SHOWN}; skipped.csv has all."),
            Table(header, [[text or "" for text in row] for row in skipped[:SHOWN]]),
        ]
    write_text(path.with_name("skipped.csv"), csv_table(header, skipped))
    write_text(path, render_html("Filter report", blocks, note=selected["result"]))


def _skipped(root: Path, units: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """Return path, reason and detail of everything that could not be stored."""
    columns = ["path", "reason", "detail"]
    tables = (unit_folder(root, "filter", unit) / "rows.parquet" for unit in units)
    rows: list[dict[str, Any]] = [row for table in tables for row in read_rows(table, columns)]
    return [(r["path"], r["reason"], r["detail"]) for r in rows if r["reason"] is not None]


def _load(root: Path, units: list[str]) -> StoredImages:
    numbers, indexes = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    scores: dict[str, list[np.ndarray]] = {}
    for number, stored in enumerate(stored_rows(root, units, MEASURES, scores=True)):
        count = len(stored.table)
        numbers.append(np.full(count, number, dtype=np.int32))
        indexes.append(np.arange(count, dtype=np.int32))
        for name in stored.table.column_names:
            if name != "key":
                scores.setdefault(name, []).append(column(stored.table, name))
    unit, index = np.concatenate(numbers), np.concatenate(indexes)
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    whole = {name: values for name, values in joined.items() if len(values) == len(unit)}
    return StoredImages(units, unit, index, whole)


def _score_blocks(
    root: Path, stored: StoredImages, name: str, edges: Sequence[tuple[str, float]]
) -> Iterator[Block]:
    """Yield a score's histogram, and the pictures nearest to each threshold on both sides."""
    yield Heading(name)
    values = stored.scores[name]
    finite = values[np.isfinite(values)]
    if not len(finite):
        yield Text("No image has this score.")
        return
    limits = "; ".join(f"{side} {value:g}" for side, value in edges) or "no threshold"
    yield Plots([Plot(draw_histogram(finite, edges), name)], width=480)
    yield Text(
        f"{finite.min():.4g} to {finite.max():.4g} (the last bar holds the top half percent), "
        f"median {np.median(finite):.4g}; {limits}"
    )
    for side, value in edges:
        refused = values > value if side == "max" else values < value
        for word, chosen in (("refused", refused), ("passed", ~refused & np.isfinite(values))):
            candidates = np.flatnonzero(chosen)
            order = np.argsort(np.abs(values[candidates] - value), kind="stable")
            nearest = candidates[order[:NEAREST]]
            yield Heading(f"{name} {side} {value:g}: nearest {word} ({len(candidates)} in all)", 3)
            pictures = [
                _picture(root, stored, int(number), float(values[number])) for number in nearest
            ]
            yield ContactSheet(pictures, good=word == "passed")


def _picture(root: Path, stored: StoredImages, number: int, value: float) -> tuple[str, str]:
    """Return the thumbnail of a stored image, and its score and key."""
    folder = unit_folder(root, "filter", stored.units[stored.unit[number]])
    done = read_done(folder)
    assert done is not None
    shard = open_shard(folder, done["statistics"]["shard"])
    raw = shard.read(0, int(stored.index[number]))
    shard.close()
    return thumbnail(raw.image, THUMBNAIL), f"{value:.4g} {raw.key}"
