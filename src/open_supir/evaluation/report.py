"""Records -> the report of an evaluation: tables as files, and one page.

Tables depend only on the records, so they can be rebuilt at any time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from open_supir.base.files import write_text
from open_supir.evaluation.compare import compare_methods
from open_supir.evaluation.means import (
    Footnotes,
    Means,
    average_records,
    format_cell,
    format_value,
    metric_title,
    not_measured,
)
from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.page import picture_blocks, scatter_blocks, settings_blocks
from open_supir.evaluation.records import WHOLE_SET, Record
from open_supir.reports.document import (
    Block,
    Folded,
    Heading,
    Listing,
    Table,
    Text,
    render_html,
    render_markdown,
)
from open_supir.reports.tables import csv_table, latex_table

FAILURES = ("load_failed", "restore_failed", "metric_failed", "not_finite", "too_small")


def write_report(
    records: Sequence[Record],
    out_dir: Path,
    *,
    title: str = "Evaluation",
    source: Path | None = None,
) -> str:
    """Write tables and the page, and return the summary as Markdown.

    Files: table.md, table.csv, table.tex, paired.csv, per_image.csv, report.html. The page also
    shows the pictures and input facts that `run_benchmark` saved beside the records, if any.

    Args:
        records: Records of one run; use `write_comparison` for several runs.
        source: Folder of the records; None is `out_dir`.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("no records to report")
    source = out_dir if source is None else source
    means = average_records(records)
    table = mean_table(means)
    summary: list[Block] = [Heading(title, 1), table]
    summary += map(Text, [*not_measured(records, means), describe_metrics(means)])
    left_out = list_failures(records)
    if left_out:
        summary += [Text("Left out of the means:"), Listing(left_out)]
    paired: list[Block] = []
    if len(means.rows) > 1:
        comparison = compare_methods(records)
        paired = [Heading("Paired differences"), comparison]
        header = ["method", "metric", "mean", "difference", "images"]
        write_text(out_dir / "paired.csv", csv_table(header, comparison.values))
    images = image_table(records, means)
    everything = [*summary, *paired, Heading("Per image"), images]
    write_text(out_dir / "table.md", render_markdown(everything))
    write_text(out_dir / "table.tex", latex_table(table.header, table.rows))
    header = ["method", "metric", "mean", "counted", "total", "direction", "reason"]
    write_text(out_dir / "table.csv", csv_table(header, _mean_rows(means)))
    header = ["run", "image", "method", "metric", "value", "status", "reason"]
    rows = [[record[key] for key in header] for record in records]  # type: ignore[literal-required]
    write_text(out_dir / "per_image.csv", csv_table(header, rows))
    page = [
        *summary,
        *picture_blocks(records, source),
        *scatter_blocks(records, means),
        *paired,
        Heading("Per image"),
        Folded("Show", [images]),
        *settings_blocks(records, source),
    ]
    write_text(out_dir / "report.html", render_html(title, page))
    return render_markdown(summary)


def mean_table(means: Means) -> Table:
    """Return the table of means: best in bold, second best underlined, footnotes for n/a.

    Metrics without any value are not columns; see `not_measured`.
    """
    notes = Footnotes()
    metrics = means.measured
    ranked = {metric: means.ranked(metric) for metric in metrics}
    rows = []
    for row in means.rows:
        line = [row]
        for metric in metrics:
            text = format_cell(means.cells.get((row, metric)), metric, notes)
            best, second = ranked[metric]
            line.append(f"**{text}**" if row in best else f"_{text}_" if row in second else text)
        rows.append(line)
    return Table(["method", *map(metric_title, metrics)], rows, notes.lines())


def describe_metrics(means: Means) -> str:
    """State the number of images and the exact metric behind each column with values."""
    known = [METRICS[name] for name in means.measured if name in METRICS]
    parts = [f"{m.title}: {m.color}, {m.library}, {m.metric_id}" for m in known]
    total = max((cell.total for cell in means.cells.values()), default=0)
    return f"Mean over {total} images, measured on 8-bit images. " + "; ".join(parts) + "."


def image_table(records: Sequence[Record], means: Means) -> Table:
    """Return a table with one row per image and method; omits metrics without any value."""
    rows = [record for record in records if record["image"] != WHOLE_SET]
    measured = {record["metric"] for record in rows if record["value"] is not None}
    metrics = [metric for metric in means.metrics if metric in measured]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for record in rows:
        value, absent = record["value"], record["status"].replace("_", " ")
        line = cells.setdefault((record["image"], record["method"]), {})
        line[record["metric"]] = absent if value is None else format_value(value, record["metric"])
    lines = [[*key, *(line.get(m, "n/a") for m in metrics)] for key, line in cells.items()]
    return Table(["image", "method", *map(metric_title, metrics)], lines)


def list_failures(records: Sequence[Record]) -> list[str]:
    """Return one line per distinct failure: image, method, metrics and reason."""
    grouped: dict[tuple[str, str, str], dict[str, None]] = {}
    for record in records:
        if record["status"] in FAILURES and record["image"] != WHOLE_SET:
            method = "all methods" if record["status"] == "load_failed" else record["method"]
            key = (record["image"], method, record["reason"])
            grouped.setdefault(key, {})[record["metric"]] = None
    return [
        f"{image}, {method} ({', '.join(metrics)}): {reason}"
        for (image, method, reason), metrics in grouped.items()
    ]


def _mean_rows(means: Means) -> Iterator[list[object]]:
    for row in means.rows:
        for metric in means.metrics:
            cell = means.cells.get((row, metric))
            if cell is not None:
                direction = METRICS[metric].direction if metric in METRICS else "none"
                reason = cell.reasons[0] if cell.reasons else None
                yield [row, metric, cell.mean, cell.counted, cell.total, direction, reason]
