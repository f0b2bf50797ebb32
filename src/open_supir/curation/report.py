"""The report page: what was refused and why, and pictures on both sides of every threshold.

One HTML file without outside parts, so that thresholds can be chosen by eye; a CSV file lists what
could not be stored.
"""

import base64
import csv
import html
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from open_supir.base.files import write_text
from open_supir.curation.reading import open_shard
from open_supir.curation.tables import read_rows
from open_supir.curation.thresholds import MEASURES, Thresholds, column, stored_rows
from open_supir.curation.work import read_done, unit_folder

NEAREST = 8  # pictures on each side of a threshold
THUMBNAIL = 112
BINS = 48
WIDTH, HEIGHT = 640, 120
STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem;text-align:left;"
    "border-bottom:1px solid #ccc;overflow-wrap:anywhere}"
    "figure{display:inline-block;margin:2px;width:112px;vertical-align:top}"
    "figcaption{font-size:12px;overflow-wrap:anywhere}img{max-width:112px}"
    ".out{border-left:4px solid #c33;padding-left:.5rem}.in{border-left:4px solid #393;"
    "padding-left:.5rem}svg{background:#f6f6f6;max-width:100%;height:auto}"
)


class Stored(NamedTuple):
    """Where every stored image is, and its scores by name."""

    units: list[str]
    unit: np.ndarray  # (N,) number of its unit
    index: np.ndarray  # (N,) place in that unit's tar
    scores: dict[str, np.ndarray]  # (N,) each, NaN where a score does not apply


def write_report(path: Path, root: Path, thresholds: Thresholds) -> None:
    """Write the page, and `skipped.csv` beside it, from finished filter and select steps."""
    selected = read_done(unit_folder(root, "select", "all"))
    if selected is None:
        raise FileNotFoundError(f"{root / 'select'}: nothing is selected yet")
    units = list(selected["statistics"]["units"])
    skipped = _skipped(root, units)
    stored = _load(root, units)
    total = len(skipped) + len(stored.unit)
    refused = Counter(row["reason"] for row in skipped)
    refused.update(selected["statistics"]["refused"])
    parts = [
        f"<h1>Filter report</h1><p>{total} candidates (tiles count), {len(stored.unit)} stored, "
        f"<b>{selected['statistics']['kept']} kept</b>.</p>",
        _reason_table(refused, total),
    ]
    edges: dict[str, list[tuple[str, float]]] = {}
    for name, side, value in thresholds.edges():
        edges.setdefault(name, []).append((side, value))
    for name, cut in selected["statistics"]["cuts"].items():
        edges.setdefault(name, []).append(("min", cut))
    for name, values in stored.scores.items():
        parts.append(f"<h2>{html.escape(name)}</h2>{_histogram(values, edges.get(name, []))}")
        for side, value in edges.get(name, []):
            parts += _both_sides(root, stored, name, side, value)
    if skipped:
        parts.append(_skipped_table(skipped))
    _write_csv(path.with_name("skipped.csv"), skipped)
    page = "".join(parts)
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><!-- {selected['result']} -->\n"
        "<meta name=viewport content='width=device-width'><title>Filter report</title>"
        f"<style>{STYLE}</style>{page}</html>\n",
    )


def _skipped(root: Path, units: Sequence[str]) -> list[dict[str, Any]]:
    """Return path, reason and detail of everything that could not be stored."""
    return [
        row
        for unit in units
        for row in read_rows(
            unit_folder(root, "filter", unit) / "rows.parquet", ["path", "reason", "detail"]
        )
        if row["reason"] is not None
    ]


def _load(root: Path, units: list[str]) -> Stored:
    numbers, indexes = [], []
    scores: dict[str, list[np.ndarray]] = {}
    for number, stored in enumerate(stored_rows(root, units, MEASURES, scores=True)):
        count = len(stored.table)
        numbers.append(np.full(count, number, dtype=np.int32))
        indexes.append(np.arange(count, dtype=np.int32))
        for name in stored.table.column_names:
            if name != "key":
                scores.setdefault(name, []).append(column(stored.table, name))
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    size = sum(map(len, numbers))
    return Stored(
        units,
        np.concatenate(numbers) if numbers else np.zeros(0, np.int32),
        np.concatenate(indexes) if indexes else np.zeros(0, np.int32),
        {name: values for name, values in joined.items() if len(values) == size},
    )


def _reason_table(refused: Mapping[str, int], total: int) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(reason)}<td>{count}<td>{count / total:.2%}"
        for reason, count in sorted(refused.items(), key=lambda item: -item[1])
    )
    return f"<h2>Refused</h2><table><tr><th>reason<th>images<th>share{rows}</table>"


def _histogram(values: np.ndarray, edges: Sequence[tuple[str, float]]) -> str:
    """Draw a histogram as SVG, with a line at each threshold."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "<p>No image has this score.</p>"
    low, high = np.quantile(finite, [0, 0.995])
    low = min([low, *(value for _, value in edges)])
    high = max([high, low + 1e-9, *(value for _, value in edges)])
    counts, _ = np.histogram(finite.clip(low, high), bins=BINS, range=(low, high))
    step, tallest = WIDTH / BINS, counts.max()
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{HEIGHT - n / tallest * HEIGHT:.1f}" '
        f'width="{step - 1:.1f}" height="{n / tallest * HEIGHT:.1f}" fill="#68a"/>'
        for i, n in enumerate(counts)
    )
    lines = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}" stroke="#c33" stroke-width="2">'
        f"<title>{side} {value:g}</title></line>"
        for side, value in edges
        for x in [(value - low) / (high - low) * WIDTH]
    )
    middle = np.median(finite)
    words = "; ".join(f"{side} {value:g}" for side, value in edges) or "no threshold"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{bars}{lines}</svg>'
        f"<p>{low:.4g} to {high:.4g} (top half percent in the last bar), median {middle:.4g}; "
        f"{words}</p>"
    )


def _both_sides(root: Path, stored: Stored, name: str, side: str, value: float) -> Iterator[str]:
    """Yield the contact sheets of the images just refused and just kept by one threshold."""
    values = stored.scores[name]
    refused = values > value if side == "max" else values < value
    word = {True: "refused", False: "passed"}
    for is_out in (True, False):
        candidates = np.flatnonzero((refused == is_out) & np.isfinite(values))
        nearest = candidates[np.argsort(np.abs(values[candidates] - value), kind="stable")]
        pictures = "".join(
            _figure(root, stored, int(number), float(values[number]))
            for number in nearest[:NEAREST]
        )
        yield (
            f"<h3>{html.escape(name)} {side} {value:g}: nearest {word[is_out]} "
            f"({len(candidates)} in all)</h3>"
            f'<div class="{"out" if is_out else "in"}">{pictures or "none"}</div>'
        )


def _figure(root: Path, stored: Stored, number: int, value: float) -> str:
    unit = stored.units[stored.unit[number]]
    folder = unit_folder(root, "filter", unit)
    done = read_done(folder)
    assert done is not None
    shard = open_shard(folder, done["statistics"]["shard"])
    raw = shard.read(0, int(stored.index[number]))
    shard.close()
    with Image.open(io.BytesIO(raw.image)) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{raw.key}">'
        f"<figcaption>{value:.4g} {raw.key}</figcaption></figure>"
    )


def _skipped_table(skipped: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(row['path'])}<td>{html.escape(row['reason'])}"
        f"<td>{html.escape(row['detail'] or '')}"
        for row in skipped[:200]
    )
    return (
        f"<h2>Could not be stored: {len(skipped)}</h2><p>The first 200; skipped.csv has all.</p>"
        f"<table><tr><th>file<th>reason<th>detail{rows}</table>"
    )


def _write_csv(path: Path, skipped: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "reason", "detail"])
    writer.writerows([row[n] for n in ("path", "reason", "detail")] for row in skipped)
    write_text(path, text.getvalue())
