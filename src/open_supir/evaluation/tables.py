"""Records -> cells -> tables in Markdown, CSV and LaTeX.

A cell is one method (or run) and metric: the mean over images, and how many images it counts.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.records import WHOLE_SET, Record

NOT_AVAILABLE = "n/a"
LATEX = {  # the backslash first: the others bring their own
    "\\": r"\textbackslash ", "{": r"\{", "}": r"\}", "~": r"\textasciitilde ",
    "^": r"\textasciicircum ", "<": r"\textless ", ">": r"\textgreater ",
    "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$", "\u00b1": r"$\pm$",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The mean of one metric over the images of one method.

    Attributes:
        mean: Over the images with a value; None without any.
        images: Names of the images with a value.
        total: Images in the benchmark.
        reasons: Why values are absent, most frequent first.
    """

    mean: float | None
    images: frozenset[str]
    total: int
    reasons: tuple[str, ...] = ()

    @property
    def counted(self) -> int:
        """Return how many images the mean counts."""
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows by metrics: rows in the order of the records, metrics in that of METRICS."""

    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]

    def best(self, metric: str) -> set[str]:
        """Return the rows with the best shown mean of a metric; none where no way is better.

        Only means over the same images compete: those over the most images.
        """
        return self.ranked(metric)[0]

    def second(self, metric: str) -> set[str]:
        """Return the rows with the second best shown mean, where at least three compete."""
        return self.ranked(metric)[1]

    def ranked(self, metric: str) -> tuple[set[str], set[str]]:
        """Return the rows with the best and with the second best shown mean of a metric."""
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


def tabulate(records: Iterable[Record], *, by: str = "method") -> Table:
    """Average the records of each row and metric.

    Args:
        records: Any records; values are averaged over images.
        by: "method" or "run": what makes a row.
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
    return Table(
        rows=tuple(dict.fromkeys(row for row, _ in groups)),
        metrics=tuple(sorted(present, key=_place)),
        cells=cells,
    )


def metric_title(metric: str) -> str:
    """Return the column title: name and arrow of the better direction."""
    known = METRICS.get(metric)
    return metric if known is None else f"{known.title} {known.arrow}".strip()


def format_value(value: float, metric: str, *, signed: bool = False) -> str:
    """Write a value with the digits of its metric."""
    decimals = METRICS[metric].decimals if metric in METRICS else 4
    return f"{value:{'+' if signed else ''}.{decimals}f}"


class Footnotes:
    """Numbers remarks, each once, in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """Return the mark that stands in the table for `text`."""
        return f"[{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        """Return the remarks, to be set below the table."""
        return [f"[{number}] {text}" for text, number in self._numbers.items()]


def format_cell(cell: Cell | None, metric: str, notes: Footnotes) -> str:
    """Write one cell: the mean, with the count where images are absent, or n/a with a footnote."""
    if cell is None:
        return NOT_AVAILABLE
    if cell.mean is None:
        reason = cell.reasons[0] if cell.reasons else "no values"
        return f"{NOT_AVAILABLE} {notes.mark(f'{metric_title(metric)}: {reason}')}"
    text = format_value(cell.mean, metric)
    if cell.counted < cell.total:
        return f"{text} (n={cell.counted}/{cell.total})"
    return " ".join([text, *(notes.mark(f"{metric_title(metric)}: {r}") for r in cell.reasons)])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table whose columns line up in a terminal; the first is left-aligned."""
    lines = [[_escape(text) for text in line] for line in (header, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]

    def join(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([join(lines[0]), join(rule), *map(join, lines[1:])])


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a booktabs table; `**x**` becomes bold and `_x_` underlined."""
    lines = [" & ".join(map(_latex, line)) + r" \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    head = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    tail = [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*head, lines[0], r"\midrule", *lines[1:], *tail]) + "\n"


def _latex(text: str) -> str:
    mark = next((m for m in (("**", "textbf"), ("_", "underline")) if _wrapped(text, m[0])), None)
    if mark is not None:
        text = text[len(mark[0]) : -len(mark[0])]
    for plain, written in LATEX.items():
        text = text.replace(plain, written)
    return text if mark is None else rf"\{mark[1]}{{{text}}}"


def _wrapped(text: str, mark: str) -> bool:
    return len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark)


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write CSV text with Unix line ends."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _place(metric: str) -> int:
    """Return the place of a column; unknown metrics of old records come last."""
    return list(METRICS).index(metric) if metric in METRICS else len(METRICS)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
