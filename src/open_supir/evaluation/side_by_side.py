"""Several runs -> one report: differing settings, final losses, metrics, curves, pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from open_supir.base.files import write_text
from open_supir.evaluation.compare import (
    ComparisonTable,
    Value,
    average_seeds,
    compare_runs,
    compare_scalars,
)
from open_supir.evaluation.finished_runs import (
    FinishedRun,
    config_differences,
    final_values,
    is_loss,
)
from open_supir.reports.document import (
    Block,
    Heading,
    PictureGrid,
    Plot,
    Plots,
    Table,
    Text,
    render_html,
    render_markdown,
)
from open_supir.reports.figures import draw_curves
from open_supir.reports.pictures import file_name, publish
from open_supir.reports.tables import csv_table

MAX_DIFFERENCES = 40


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What the report shows."""

    method: str = "restored"  # method whose metrics are compared
    # irrelevant configuration keys (paths, loggers), with everything below them
    ignore: Sequence[str] = ()
    pictures: int = 6  # maximum number of inputs in the picture grids
    smooth: int = 10  # width of the running mean over training losses, in logged points
    curves: Sequence[str] = ()  # scalars to plot; if empty, all training losses and val/*

    def __post_init__(self) -> None:
        if self.pictures < 0 or self.smooth < 1:
            raise ValueError(
                f"pictures must be >= 0 and smooth >= 1, got {self.pictures} and {self.smooth}"
            )


def write_comparison(
    runs: Sequence[FinishedRun], out_dir: Path, settings: ComparisonSettings
) -> str:
    """Write report.md, report.html, values.csv, curves/ and pictures/; return tables as Markdown.

    Args:
        runs: At least one, with unique labels; differences are relative to the first.

    Raises:
        ValueError: `runs` is empty.
    """
    if not runs:
        raise ValueError("no runs to compare")
    tables, numbers = _tables(runs, settings)
    title = f"{len(runs)} runs side by side" if len(runs) > 1 else f"Run {runs[0].label}"
    folders = [[run.label, str(run.path), "yes" if run.finished else "no"] for run in runs]
    document = [
        Heading(title, 1),
        *tables,
        *_curve_blocks(runs, out_dir, settings),
        *_picture_blocks(runs, out_dir, settings),
        Heading("Runs"),
        Table(["run", "folder", "finished"], folders),
    ]
    write_text(out_dir / "report.md", render_markdown(document, out_dir))
    write_text(out_dir / "report.html", render_html(title, document))
    header = ["kind", "run", "name", "value", "difference", "images"]
    write_text(out_dir / "values.csv", csv_table(header, numbers))
    return render_markdown(tables)


def _tables(
    runs: Sequence[FinishedRun], settings: ComparisonSettings
) -> tuple[list[Block], list[tuple[str, *Value]]]:
    blocks: list[Block] = [Heading("What differs"), _difference_table(runs, settings.ignore)]
    numbers: list[tuple[str, *Value]] = []
    groups = {run.label: _without_seed(run.label) for run in runs}
    has_seeds = len(set(groups.values())) < len(groups)

    def add(title: str, kind: str, comparison: ComparisonTable) -> None:
        blocks.extend([Heading(title), comparison])
        numbers.extend((kind, *row) for row in comparison.values)
        if has_seeds:
            blocks.extend([Text("Over seeds:"), average_seeds(comparison.values, groups)])

    finals = {run.label: final_values(run) for run in runs}
    if any(finals.values()):
        add("Losses at the end", "final", compare_scalars(finals))
        blocks.append(Text("Training losses are means over the last tenth of the logged points."))
    if not any(r["method"] == settings.method for run in runs for r in run.records):
        blocks.append(Text(f"No run has evaluation records of {settings.method}."))
        return blocks, numbers
    measured = {run.label: run.records for run in runs}
    comparison = compare_runs(measured, method=settings.method)
    add(f"Metrics of {settings.method}", "metric", comparison)
    absent = [run.label for run in runs if not run.records]
    if absent:
        blocks.append(Text("Without an evaluation: " + ", ".join(absent) + "."))
    return blocks, numbers


def _difference_table(runs: Sequence[FinishedRun], ignore: Sequence[str]) -> Block:
    differences = config_differences(runs, ignore=ignore)
    if not differences:
        return Text("The configurations are the same.")
    rows = [[key, *values] for key, values in differences.items()][:MAX_DIFFERENCES]
    further = len(differences) - len(rows)
    notes = [f"{further} further keys differ."] if further else []
    return Table(["setting", *(run.label for run in runs)], rows, notes)


def _curve_blocks(
    runs: Sequence[FinishedRun], out_dir: Path, settings: ComparisonSettings
) -> list[Block]:
    logged = {name for run in runs for name, curve in run.curves.items() if len(curve) > 1}
    names = sorted(name for name in logged if name.startswith("val/"))
    names += sorted(name for name in logged if is_loss(name))
    plots = []
    for name in settings.curves or names:
        curves = {run.label: run.curves[name] for run in runs if name in run.curves}
        if curves:
            path = out_dir / "curves" / f"{file_name(name.replace('/', '_'))}.svg"
            svg = draw_curves(
                name, curves, smooth=settings.smooth if name.startswith("train/") else 1
            )
            write_text(path, svg)
            plots.append(Plot(svg, name, path))
    return [Heading("Curves"), Plots(plots, width=640)] if plots else []


def _picture_blocks(
    runs: Sequence[FinishedRun], out_dir: Path, settings: ComparisonSettings
) -> list[Block]:
    folder, blocks = out_dir / "pictures", []

    def add(title: str, kind: str, columns: dict[str, dict[str, Path]], names: list[str]) -> None:
        rows = [
            [
                publish(images[name], folder, f"{kind}{column}_{name}") if name in images else None
                for column, images in columns.items()
            ]
            for name in names
        ]
        blocks.extend([Heading(title), PictureGrid(list(columns), rows, names)])

    restored = {run.label: _evaluated(run, settings.method) for run in runs}
    names = sorted(set().union(*restored.values()))[: settings.pictures]
    if names:
        inputs = {kind: _first(runs, kind) for kind in ("lq", "hq")}
        columns = {title: images for title, images in (inputs | restored).items() if images}
        add(f"Pictures: {settings.method}", "", columns, names)
    latest = _latest_pictures(runs, settings.pictures)
    names = sorted(set().union(*latest.values()), key=_natural)
    if names:
        add("Validation pictures", "val_", latest, names)
    return blocks


def _latest_pictures(runs: Sequence[FinishedRun], limit: int) -> dict[str, dict[str, Path]]:
    """Return, by run, the last pictures whose names all runs share, else each run's last one."""
    shown = [set(run.pictures) for run in runs if run.pictures]
    if not shown or limit == 0:
        return {}
    shared = sorted(set.intersection(*shown), key=_natural)[-limit:]
    if shared:
        return {r.label: {n: r.pictures[n] for n in shared if r.pictures} for r in runs}
    return {r.label: {"last": list(r.pictures.values())[-1]} if r.pictures else {} for r in runs}


def _evaluated(run: FinishedRun, method: str) -> dict[str, Path]:
    folder = run.path / "eval" / "images" / method
    paths = sorted(folder.rglob("*.png"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _first(runs: Sequence[FinishedRun], method: str) -> dict[str, Path]:
    return next((images for run in runs if (images := _evaluated(run, method))), {})


def _without_seed(label: str) -> str:
    """Remove the seed from a label, also inside the name of a run folder, with its job's number."""
    label = re.sub(r"(?<=/)\d+_(?=[^/ ]*\bseed=\d)", "", label)
    return " ".join(re.sub(r"(^|[ ,/-])seed=\d+(?=[ ,/-]|$)", "", label).split()) or "all"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts step_9 before step_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
