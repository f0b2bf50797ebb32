"""The parts of an evaluation report that only the page has: pictures, scatter plots, settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from open_supir.evaluation.benchmark import REFERENCE_FOLDER, picture_path
from open_supir.evaluation.means import Means, metric_title
from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.provenance import InputFacts, read_environment, read_inputs
from open_supir.evaluation.records import WHOLE_SET, Record
from open_supir.reports.document import (
    Block,
    Folded,
    Heading,
    Listing,
    Plot,
    Plots,
    Slide,
    Slides,
    Text,
)
from open_supir.reports.figures import draw_scatter

MAX_PICTURES = 100


def picture_blocks(records: Sequence[Record], source: Path) -> list[Block]:
    """Show the saved pictures of every method and of the reference."""
    methods = [*dict.fromkeys(r["method"] for r in records), REFERENCE_FOLDER]
    images = list(dict.fromkeys(r["image"] for r in records if r["image"] != WHOLE_SET))
    inputs = read_inputs(source)
    slides = []
    for image in images[:MAX_PICTURES]:
        paths = {method: picture_path(source / "images", method, image) for method in methods}
        found = {method: path for method, path in paths.items() if path.is_file()}
        if found:
            slides.append(Slide(image, found, _facts(inputs[image]) if image in inputs else {}))
    if not slides:
        return []
    shown = [method for method in methods if any(method in s.pictures for s in slides)]
    candidates = [m for m in shown if m != REFERENCE_FOLDER] or shown
    blocks: list[Block] = [Heading("Pictures")]
    if len(slides) < len(images):
        blocks.append(Text(f"The first {len(slides)} of {len(images)} images."))
    return [*blocks, Slides(shown, candidates[0], candidates[-1], slides)]


def scatter_blocks(records: Sequence[Record], means: Means) -> list[Block]:
    """Plot each metric of every method against the first method, one dot per image."""
    base, *others = means.rows
    values: dict[tuple[str, str], dict[str, float]] = {}  # (metric, method) -> image -> value
    for r in records:
        if r["value"] is not None and r["image"] != WHOLE_SET:
            values.setdefault((r["metric"], r["method"]), {})[r["image"]] = r["value"]
    plots = []
    for metric in means.metrics:
        first = values.get((metric, base), {})
        points = {
            method: [(image, first[image], y) for image, y in own.items() if image in first]
            for method in others
            if (own := values.get((metric, method), {})).keys() & first.keys()
        }
        if points:
            plots.append(Plot(draw_scatter(metric_title(metric), base, points), metric))
    if not plots:
        return []
    text = f"One dot per image: each method against {base}; on the diagonal they are equal."
    return [Heading("Image by image"), Text(text), Plots(plots)]


def settings_blocks(records: Sequence[Record], source: Path) -> list[Block]:
    """List the settings, versions and metrics behind the values."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        settings = json.dumps(record["settings"], sort_keys=True)
        groups.setdefault((record["run"], settings), {})[record["method"]] = None
    lines = [f"{run} ({', '.join(methods)}): {text}" for (run, text), methods in groups.items()]
    environment = [f"{key}: {_plain(value)}" for key, value in read_environment(source).items()]
    names = dict.fromkeys(record["metric"] for record in records)
    metrics = [_describe(name) for name in names if name in METRICS]
    inner = [Listing(part) for part in (lines, environment, metrics) if part]
    return [Heading("Settings, versions, hashes"), Folded("Show", inner)]


def _describe(name: str) -> str:
    metric = METRICS[name]
    files = "; ".join(f"{f.path} from {f.url}, {f.licence}" for f in metric.weights)
    text = f"{metric.title}: {metric.library}, {metric.metric_id}; {metric.color}; {metric.range}"
    return text + (f"; weights {files}" if files else "")


def _facts(row: InputFacts) -> dict[str, str]:
    sizes = {"lq": row["lq_size"], "hq": row["hq_size"]}
    facts = {"file": row["file"], "sha256": row["sha256"]}
    facts |= {name: "x".join(map(str, size)) for name, size in sizes.items() if size is not None}
    facts |= row["degradation"]
    return {key: _plain(value) for key, value in facts.items() if value is not None}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
