"""What only the HTML page of an evaluation shows: scatter plots, pictures, settings, versions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from open_supir.evaluation.benchmark import REFERENCE_FOLDER, picture_path
from open_supir.evaluation.document import Block, Folded, Heading, Listing, Paragraph, Plots
from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.provenance import Input, read_environment, read_inputs
from open_supir.evaluation.records import WHOLE_SET, Record
from open_supir.evaluation.tables import Table, metric_title
from open_supir.evaluation.widgets import Scatter, Slide, Slides

MAX_PICTURES = 100


def scatter_blocks(records: Sequence[Record], table: Table) -> list[Block]:
    """Plot each metric of every method over that of the first, one dot an image."""
    methods = list(table.rows)
    values = {
        (r["image"], r["method"], r["metric"]): r["value"]
        for r in records
        if r["value"] is not None and r["image"] != WHOLE_SET
    }
    images = list(dict.fromkeys(image for image, _, _ in values))
    plots = []
    for metric in table.metrics:
        points = {}
        for method in methods[1:]:
            pairs = [
                (image, values[image, methods[0], metric], values[image, method, metric])
                for image in images
                if (image, methods[0], metric) in values and (image, method, metric) in values
            ]
            if pairs:
                points[method] = pairs
        if points:
            plots.append(Scatter(title=metric_title(metric), base=methods[0], points=points))
    if not plots:
        return []
    text = f"One dot an image: each method over {methods[0]}; on the diagonal they are equal."
    return [Heading("Image by image"), Paragraph(text), Plots(plots)]


def picture_blocks(records: Sequence[Record], source: Path) -> list[Block]:
    """Show the pictures of every method and the reference, as far as they were saved."""
    methods = [*dict.fromkeys(r["method"] for r in records), REFERENCE_FOLDER]
    images = list(dict.fromkeys(r["image"] for r in records if r["image"] != WHOLE_SET))
    inputs = read_inputs(source)
    slides = []
    for image in images[:MAX_PICTURES]:
        paths = {method: picture_path(source / "images", method, image) for method in methods}
        found = {method: path for method, path in paths.items() if path.is_file()}
        if found:
            facts = _facts(inputs[image]) if image in inputs else {}
            slides.append(Slide(name=image, pictures=found, facts=facts))
    if not slides:
        return []
    shown = [method for method in methods if any(method in s.pictures for s in slides)]
    candidates = [m for m in shown if m != REFERENCE_FOLDER] or shown
    blocks: list[Block] = [Heading("Pictures")]
    if len(slides) < len(images):
        blocks.append(Paragraph(f"The first {len(slides)} of {len(images)} images."))
    grid = Slides(methods=shown, left=candidates[0], right=candidates[-1], slides=slides)
    return [*blocks, grid]


def settings_blocks(records: Sequence[Record], source: Path) -> list[Block]:
    """State what the numbers depend on, and what they were made with."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        key = (record["run"], json.dumps(record["settings"], sort_keys=True))
        methods = groups.setdefault(key, [])
        if record["method"] not in methods:
            methods.append(record["method"])
    lines = [
        f"{run} ({', '.join(methods)}): {settings}" for (run, settings), methods in groups.items()
    ]
    inner: list[Block] = [Listing(lines)]
    environment = read_environment(source)
    if environment:
        inner.append(Listing([f"{key}: {_text(value)}" for key, value in environment.items()]))
    return [Heading("Settings, versions, hashes"), Folded("Show", [*inner, _metrics(records)])]


def _metrics(records: Sequence[Record]) -> Block:
    lines = []
    for name in dict.fromkeys(record["metric"] for record in records):
        metric = METRICS.get(name)
        if metric is not None:
            files = "; ".join(f"{f.path} from {f.url}, {f.licence}" for f in metric.weights)
            lines.append(
                f"{metric.title}: {metric.library}, {metric.metric_id}; {metric.color}; "
                f"{metric.range}" + (f"; weights {files}" if files else "")
            )
    return Listing(lines)


def _facts(row: Input) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "file": row["file"], "sha256": row["sha256"],
        "lq": "x".join(map(str, row["lq_size"])),
    }  # fmt: skip
    if row["hq_size"] is not None:
        facts["hq"] = "x".join(map(str, row["hq_size"]))
    return {k: v for k, v in {**facts, **row["degradation"]}.items() if v is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
