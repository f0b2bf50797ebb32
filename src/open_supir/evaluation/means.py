"""Means of records by method (or run) and metric, and their formatting in table cells."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.records import WHOLE_SET, Record

NOT_AVAILABLE = "n/a"
FETCH = (
    "weights are absent; with a network, `python -m src.evaluate metrics.download=true` fetches "
    "them; table.csv names each file and where it belongs"
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The mean of one metric over the images of one method."""

    mean: float | None  # mean over the images with a value; None if there are none
    images: frozenset[str]  # names of the images with a value
    total: int  # number of images in the benchmark
    reasons: tuple[str, ...] = ()  # why values are missing, most frequent first

    @property
    def counted(self) -> int:
        """Return the number of images in the mean."""
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Means:
    """A table of cells: rows in the order of the records, metrics in the order of METRICS."""

    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]

    @property
    def measured(self) -> list[str]:
        """Return the metrics with a value in some row; the others are not columns of tables."""
        have = {metric for (_, metric), cell in self.cells.items() if cell.mean is not None}
        return [metric for metric in self.metrics if metric in have]

    def best(self, metric: str) -> set[str]:
        """Return the rows with the best mean, as displayed; none for metrics without a direction.

        Only rows with the most images are ranked, and only if they share the same images.
        """
        return self.ranked(metric)[0]

    def ranked(self, metric: str) -> tuple[set[str], set[str]]:
        """Return the rows with the best and the second best mean of a metric, as displayed."""
        none: tuple[set[str], set[str]] = (set(), set())
        direction = METRICS[metric].direction if metric in METRICS else "none"
        cells = {row: self.cells[row, metric] for row in self.rows if (row, metric) in self.cells}
        most = max((cell.counted for cell in cells.values()), default=0)
        fullest = {row: cell for row, cell in cells.items() if cell.counted == most > 0}
        if direction == "none" or len(fullest) < 2:
            return none
        if len({cell.images for cell in fullest.values()}) > 1:
            return none
        shown = {
            row: float(format_value(cell.mean, metric))
            for row, cell in fullest.items()
            if cell.mean is not None
        }
        order = sorted(set(shown.values()), reverse=direction == "higher")
        places = [{row for row, value in shown.items() if value == place} for place in order[:2]]
        second = places[1] if len(places) > 1 and len(shown) > 2 else set()
        return places[0], second


def average_records(records: Iterable[Record], *, by: str = "method") -> Means:
    """Average the records of each row and metric.

    Args:
        records: Any records; values are averaged over images.
        by: "method" or "run", the key of a row.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    images: dict[str, set[str]] = {}
    for record in records:
        row = record["run"] if by == "run" else record["method"]
        groups.setdefault((row, record["metric"]), []).append(record)
        if record["image"] != WHOLE_SET:
            images.setdefault(row, set()).add(record["image"])
    cells = {}
    for key, group in groups.items():
        values = [r["value"] for r in group if r["value"] is not None]
        reasons = Counter(r["reason"] for r in group if r["value"] is None or r["reason"])
        whole = all(r["image"] == WHOLE_SET for r in group)
        cells[key] = Cell(
            mean=fmean(values) if values else None,
            images=frozenset(r["image"] + r["reason"] for r in group if r["value"] is not None),
            total=1 if whole else len(images[key[0]]),
            reasons=tuple(reason for reason, _ in reasons.most_common()),
        )
    present = dict.fromkeys(metric for _, metric in groups)
    return Means(
        rows=tuple(dict.fromkeys(row for row, _ in groups)),
        metrics=tuple(sorted(present, key=_place)),
        cells=cells,
    )


def not_measured(records: Iterable[Record], means: Means) -> list[str]:
    """Return a line about the metrics without any value, if there are such: which, and why."""
    reasons = {r["metric"]: r for r in records if r["metric"] not in means.measured}
    absent = [metric for metric in means.metrics if metric in reasons]
    titles = {m: METRICS[m].title if m in METRICS else m for m in absent}
    lacking = [titles[m] for m in absent if reasons[m]["status"] == "missing_weights"]
    parts = [f"{titles[m]} ({reasons[m]['reason']})" for m in absent if titles[m] not in lacking]
    if lacking:
        parts.append(f"{', '.join(lacking)} ({FETCH})")
    return [f"Not measured: {'; '.join(parts)}."] if parts else []


def metric_title(metric: str) -> str:
    """Return the column title: the metric's title and the arrow of its better direction."""
    known = METRICS.get(metric)
    return metric if known is None else f"{known.title} {known.arrow}".strip()


def format_value(value: float, metric: str, *, signed: bool = False) -> str:
    """Format a value with the decimals of its metric."""
    decimals = METRICS[metric].decimals if metric in METRICS else 4
    return f"{value:{'+' if signed else ''}.{decimals}f}"


class Footnotes:
    """Notes below a table, numbered in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Return the mark that refers to `text` in the table."""
        return f"[{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        """Return the notes with their marks."""
        return [f"[{number}] {text}" for text, number in self._numbers.items()]


def format_cell(cell: Cell | None, metric: str, notes: Footnotes) -> str:
    """Format one cell: the mean, with a count if images are missing, or n/a with a footnote."""
    if cell is None:
        return NOT_AVAILABLE
    if cell.mean is None:
        reason = cell.reasons[0] if cell.reasons else "no values"
        return f"{NOT_AVAILABLE} {notes.mark(f'{metric_title(metric)}: {reason}')}"
    text = format_value(cell.mean, metric)
    if cell.counted < cell.total:
        return f"{text} (n={cell.counted}/{cell.total})"
    return " ".join([text, *(notes.mark(f"{metric_title(metric)}: {r}") for r in cell.reasons)])


def _place(metric: str) -> int:
    """Return a column's position; unknown metrics in old records come last."""
    return list(METRICS).index(metric) if metric in METRICS else len(METRICS)
