"""Several runs -> one report: what differs, final losses, metrics, curves, pictures."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from open_supir.base.files import write_text
from open_supir.base.images import read_image, resize, write_image
from open_supir.evaluation.compare import Comparison, average_seeds, compare_runs, compare_scalars
from open_supir.evaluation.document import (
    LARGE_FILE,
    LARGE_SIDE,
    Block,
    DataTable,
    Figure,
    Heading,
    Paragraph,
    PictureGrid,
    render_html,
    render_markdown,
)
from open_supir.evaluation.plots import plot_curves
from open_supir.evaluation.runs import Run, config_differences, final_values
from open_supir.evaluation.tables import csv_table

MAX_DIFFERENCES = 40


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What the report shows.

    Attributes:
        method: Results whose metrics are compared.
        ignore: Configuration keys that say nothing (paths, loggers); beginnings count.
        pictures: At most this many inputs in the picture grids.
        smooth: Width of the running mean over training losses, in logged points.
        curves: Scalars to plot; all losses and val/* where empty.
    """

    method: str = "restored"
    ignore: tuple[str, ...] = ()
    pictures: int = 6
    smooth: int = 10
    curves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ignore", tuple(self.ignore))
        object.__setattr__(self, "curves", tuple(self.curves))
        if self.pictures < 0 or self.smooth < 1:
            raise ValueError(
                f"pictures must be >= 0 and smooth >= 1, got {self.pictures} and {self.smooth}"
            )


def write_comparison(runs: Sequence[Run], out_dir: Path, settings: ComparisonSettings) -> str:
    """Write report.md, report.html, values.csv, curves/ and pictures/; return tables as Markdown.

    Args:
        runs: At least one, with unique labels; differences are taken from the first.
        out_dir: Made where it does not exist.
        settings: What to show.

    Raises:
        ValueError: `runs` is empty.
    """
    if not runs:
        raise ValueError("no runs to compare")
    out_dir.mkdir(parents=True, exist_ok=True)
    tables, numbers = _tables(runs, settings)
    blocks = [
        *tables,
        *_curve_blocks(runs, out_dir, settings),
        *_picture_blocks(runs, out_dir, settings),
        Heading("Runs"),
        DataTable(
            ["run", "folder", "finished"],
            [[run.label, str(run.path), "yes" if run.finished else "no"] for run in runs],
        ),
    ]
    title = f"{len(runs)} runs side by side" if len(runs) > 1 else f"Run {runs[0].label}"
    write_text(out_dir / "report.md", render_markdown([Heading(title, 1), *blocks], out_dir))
    write_text(out_dir / "report.html", render_html(title, [Heading(title, 1), *blocks]))
    write_text(
        out_dir / "values.csv",
        csv_table(["kind", "run", "name", "value", "difference", "images"], numbers),
    )
    return render_markdown(tables, out_dir)


def _tables(
    runs: Sequence[Run], settings: ComparisonSettings
) -> tuple[list[Block], list[list[object]]]:
    blocks: list[Block] = []
    numbers: list[list[object]] = []
    groups = {run.label: _without_seed(run.label) for run in runs}
    seeds = 1 < len(set(groups.values())) < len(groups) or len(set(groups.values())) == 1 < len(
        runs
    )

    def add(title: str, kind: str, comparison: Comparison) -> None:
        blocks.extend([Heading(title), _data_table(comparison)])
        numbers.extend([kind, *row] for row in comparison.values)
        if seeds:
            blocks.extend(
                [Paragraph("Over seeds:"), _data_table(average_seeds(comparison.values, groups))]
            )

    differences = config_differences(runs, ignore=settings.ignore)
    blocks.append(Heading("What differs"))
    blocks.append(_difference_table(runs, differences))
    finals = {run.label: final_values(run) for run in runs}
    if any(finals.values()):
        add("Losses at the end", "final", compare_scalars(finals))
        blocks.append(
            Paragraph("Training losses are means over the last tenth of the logged points.")
        )
    if any(r["method"] == settings.method for run in runs for r in run.records):
        measured = {run.label: run.records for run in runs}
        comparison = compare_runs(measured, method=settings.method)
        add(f"Metrics of {settings.method}", "metric", comparison)
        absent = [run.label for run in runs if not run.records]
        if absent:
            blocks.append(Paragraph("Without an evaluation: " + ", ".join(absent) + "."))
    else:
        blocks.append(Paragraph(f"No run has evaluation records of {settings.method}."))
    return blocks, numbers


def _difference_table(runs: Sequence[Run], differences: dict[str, list[str]]) -> Block:
    if not differences:
        return Paragraph("The configurations are the same.")
    shown = list(differences.items())[:MAX_DIFFERENCES]
    notes = []
    if len(shown) < len(differences):
        notes.append(f"{len(differences) - len(shown)} further keys differ.")
    rows = [[key, *values] for key, values in shown]
    return DataTable(["setting", *(run.label for run in runs)], rows, notes)


def _curve_blocks(
    runs: Sequence[Run], out_dir: Path, settings: ComparisonSettings
) -> Iterable[Block]:
    names = settings.curves or sorted(
        {
            name
            for run in runs
            for name, curve in run.curves.items()
            if len(curve) > 1 and ("loss" in name or name.startswith("val/"))
        },
        key=lambda name: (not name.startswith("val/"), name),
    )
    figures = []
    for name in names:
        curves = {run.label: run.curves[name] for run in runs if name in run.curves}
        if curves:
            path = out_dir / "curves" / f"{_file_name(name.replace('/', '_'))}.png"
            plot_curves(name, curves, path, smooth=settings.smooth if "train" in name else 1)
            figures.append(Figure(path, name))
    return [Heading("Curves"), *figures] if figures else []


def _picture_blocks(
    runs: Sequence[Run], out_dir: Path, settings: ComparisonSettings
) -> Iterable[Block]:
    blocks: list[Block] = []
    folder = out_dir / "pictures"
    restored = {run.label: _evaluated(run, settings.method) for run in runs}
    names = sorted(set().union(*restored.values()))[: settings.pictures]
    if names:
        columns = {"lq": _first(runs, "lq"), "hq": _first(runs, "hq"), **restored}
        columns = {title: images for title, images in columns.items() if images}
        rows = [
            [
                _publish(images.get(name), folder, f"{title}_{name}")
                for title, images in columns.items()
            ]
            for name in names
        ]
        blocks += [Heading(f"Pictures: {settings.method}"), PictureGrid(list(columns), rows, names)]
    latest = _latest_pictures(runs, settings.pictures)
    if latest:
        rows = [
            [
                _publish(path, folder, f"val_{run.label}_{name}")
                for run, path in zip(runs, row, strict=True)
            ]
            for name, row in latest.items()
        ]
        titles = [run.label for run in runs]
        blocks += [Heading("Validation pictures"), PictureGrid(titles, rows, list(latest))]
    return blocks


def _latest_pictures(runs: Sequence[Run], limit: int) -> dict[str, list[Path | None]]:
    """Return the last pictures that all runs have under one name, else the last of each run."""
    if not any(run.pictures for run in runs) or limit == 0:
        return {}
    shared = set.intersection(*(set(run.pictures) for run in runs if run.pictures))
    if not shared:
        row = [list(run.pictures.values())[-1] if run.pictures else None for run in runs]
        return {"last": row}
    names = sorted(shared, key=_natural)[-limit:]
    return {name: [run.pictures.get(name) for run in runs] for name in names}


def _evaluated(run: Run, method: str) -> dict[str, Path]:
    folder = run.path / "eval" / "images" / method
    paths = sorted(folder.rglob("*.png"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _first(runs: Sequence[Run], method: str) -> dict[str, Path]:
    return next((images for run in runs if (images := _evaluated(run, method))), {})


def _publish(path: Path | None, folder: Path, name: str) -> Path | None:
    """Copy a picture into the report, smaller where it is large."""
    if path is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (_file_name(name.removesuffix(path.suffix)) + path.suffix.lower())
    if path.stat().st_size <= LARGE_FILE:
        copyfile(path, target)
        return target
    image = read_image(path)
    height, width = image.shape[-2:]
    scale = min(1.0, LARGE_SIDE / max(height, width))
    target = target.with_suffix(".jpg")
    write_image(
        target, resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    )
    return target


def _data_table(comparison: Comparison) -> DataTable:
    return DataTable(comparison.header, comparison.rows, comparison.notes)


def _without_seed(label: str) -> str:
    """Leave the seed out, also in the name of a training's folder within a label."""
    return " ".join(re.sub(r"(^|[ ,/])seed=\d+(?=[ ,/]|$)", "", label).split()) or "all"


def _file_name(name: str) -> str:
    """Return a name that file systems take; other names stay other names."""
    plain = re.sub(r"[^\w.=-]+", "_", name)[:60]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort step_9 before step_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
