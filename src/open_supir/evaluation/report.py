"""Records -> a report: the mean table, the table per image, and what was left out, as files.

Everything is made from the records alone, so a table can be made again at any time.
"""

from collections.abc import Sequence
from pathlib import Path

from open_supir.base.files import write_text
from open_supir.evaluation.compare import compare_methods
from open_supir.evaluation.document import (
    Block,
    DataTable,
    Folded,
    Heading,
    Listing,
    Paragraph,
    render_html,
    render_markdown,
)
from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.page import picture_blocks, scatter_blocks, settings_blocks
from open_supir.evaluation.records import WHOLE_SET, Record
from open_supir.evaluation.tables import (
    Footnotes,
    Table,
    csv_table,
    format_cell,
    format_value,
    latex_table,
    metric_title,
    tabulate,
)

FAILURES = ("load_failed", "restore_failed", "metric_failed", "not_finite", "too_small")


def write_report(
    records: Sequence[Record],
    out_dir: Path,
    *,
    title: str = "Evaluation",
    source: Path | None = None,
) -> str:
    """Write tables and the page, and return the summary as Markdown.

    Files: table.md, table.csv, table.tex, paired.csv, per_image.csv, report.html. The page shows
    the pictures and the facts of the inputs that `run_benchmark` left beside the records, if any.

    Args:
        records: Of one run; several runs are laid side by side by `write_comparison`.
        out_dir: Made where it does not exist.
        title: First line of the report.
        source: Folder of the records, `out_dir` where None.

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("no records to report")
    source = out_dir if source is None else source
    table = tabulate(records)
    means = mean_table(table)
    summary: list[Block] = [Heading(title, 1), means, Paragraph(describe_metrics(table))]
    left_out = list_failures(records)
    if left_out:
        summary.append(Paragraph("Left out of the means:"))
        summary.append(Listing(left_out))
    paired: list[Block] = []
    if len(table.rows) > 1:
        comparison = compare_methods(records)
        paired = [
            Heading("Paired differences"),
            DataTable(comparison.header, comparison.rows, comparison.notes),
        ]
        numbers = ["method", "metric", "mean", "difference", "images"]
        write_text(out_dir / "paired.csv", csv_table(numbers, comparison.values))
    images = image_table(records, table)
    text = render_markdown(summary, out_dir)
    whole = [*summary, *paired, Heading("Per image"), images]
    write_text(out_dir / "table.md", render_markdown(whole, out_dir))
    write_text(out_dir / "table.csv", mean_csv(table))
    write_text(out_dir / "table.tex", latex_table(means.header, means.rows))
    write_text(out_dir / "per_image.csv", image_csv(records))
    page = [
        *summary,
        *picture_blocks(records, source),
        *scatter_blocks(records, table),
        *paired,
        Heading("Per image"),
        Folded("Show", [images]),
        *settings_blocks(records, source),
    ]
    write_text(out_dir / "report.html", render_html(title, page))
    return text


def mean_table(table: Table, *, first_column: str = "method") -> DataTable:
    """Lay out the means: best in bold, second best underlined, counts, and footnotes for n/a."""
    notes = Footnotes()
    rows = []
    ranked = {metric: table.ranked(metric) for metric in table.metrics}
    for row in table.rows:
        line = [row]
        for metric in table.metrics:
            text = format_cell(table.cells.get((row, metric)), metric, notes)
            best, second = ranked[metric]
            line.append(f"**{text}**" if row in best else f"_{text}_" if row in second else text)
        rows.append(line)
    return DataTable([first_column, *map(metric_title, table.metrics)], rows, notes.lines())


def describe_metrics(table: Table) -> str:
    """Say how many images were measured and which exact metric each column with values is."""
    total = max((c.total for c in table.cells.values()), default=0)
    parts = []
    for metric in table.metrics:
        known = METRICS.get(metric)
        if known is not None and any(
            c.mean is not None for (_, name), c in table.cells.items() if name == metric
        ):
            parts.append(f"{known.title}: {known.color}, {known.library}, {known.metric_id}")
    return f"Mean over {total} images, measured on 8-bit images. " + "; ".join(parts) + "."


def mean_csv(table: Table) -> str:
    """Write one line a row and metric: mean, counted, total, direction, reason."""
    rows = []
    for row in table.rows:
        for metric in table.metrics:
            cell = table.cells.get((row, metric))
            if cell is not None:
                direction = METRICS[metric].direction if metric in METRICS else "none"
                reason = cell.reasons[0] if cell.reasons else ""
                mean = "" if cell.mean is None else repr(cell.mean)
                rows.append([row, metric, mean, cell.counted, cell.total, direction, reason])
    header = ["method", "metric", "mean", "counted", "total", "direction", "reason"]
    return csv_table(header, rows)


def image_csv(records: Sequence[Record]) -> str:
    """Write every record as a line of CSV, settings left out."""
    keys = ("run", "image", "method", "metric", "value", "status", "reason")
    rows = [["" if record[key] is None else record[key] for key in keys] for record in records]
    return csv_table(keys, rows)


def image_table(records: Sequence[Record], table: Table) -> DataTable:
    """Lay out one line an image and method; metrics without any value are left out."""
    metrics = [
        metric
        for metric in table.metrics
        if any(
            r["value"] is not None and r["image"] != WHOLE_SET
            for r in records
            if r["metric"] == metric
        )
    ]
    values = {(r["image"], r["method"], r["metric"]): r for r in records}
    rows = []
    for image, method in dict.fromkeys((r["image"], r["method"]) for r in records):
        if image == WHOLE_SET:
            continue
        line = [image, method]
        for metric in metrics:
            record = values.get((image, method, metric))
            value = None if record is None else record["value"]
            absent = "n/a" if record is None else record["status"].replace("_", " ")
            line.append(absent if value is None else format_value(value, metric))
        rows.append(line)
    return DataTable(["image", "method", *map(metric_title, metrics)], rows)


def list_failures(records: Sequence[Record]) -> list[str]:
    """Return one line for each distinct failure: image, method, metrics and reason."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        if record["status"] in FAILURES and record["image"] != WHOLE_SET:
            method = "all methods" if record["status"] == "load_failed" else record["method"]
            key = (record["image"], method, record["reason"])
            grouped.setdefault(key, []).append(record["metric"])
    lines = []
    for (image, method, reason), metrics in grouped.items():
        names = ", ".join(dict.fromkeys(metrics))
        lines.append(f"{image}, {method} ({names}): {reason}")
    return lines
