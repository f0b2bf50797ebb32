"""Tables of texts as Markdown, LaTeX and CSV, written by pandas.

A cell `**x**` is bold, a cell `_x_` is underlined.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

LATEX = str.maketrans({
    "\\": r"\textbackslash ", "{": r"\{", "}": r"\}", "~": r"\textasciitilde ",
    "^": r"\textasciicircum ", "<": r"\textless ", ">": r"\textgreater ",
    "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$", "\u00b1": r"$\pm$",
})  # fmt: skip


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table with padded columns; the first is left-aligned, others right."""

    def clean(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    frame = _frame(map(clean, header), rows).map(clean)
    sides = ["left"] + ["right"] * (len(frame.columns) - 1)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=sides)


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a LaTeX table with booktabs rules."""
    frame = _frame(map(_latex, header), rows).map(_latex)
    columns = "l" + "r" * (len(frame.columns) - 1)
    table = frame.to_latex(index=False, escape=False, column_format=columns)
    return "% needs \\usepackage{booktabs}\n" + table


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write CSV text with Unix line endings; None is an empty cell."""
    return _frame(header, rows).to_csv(index=False, lineterminator="\n")


def _frame(header: Iterable[str], rows: Iterable[Sequence[object]]) -> "pd.DataFrame":
    import pandas as pd  # late: takes half a second, and only reports need it

    return pd.DataFrame(list(map(list, rows)), columns=list(header), dtype=object)


def _latex(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.+)\*\*", text)
    underlined = re.fullmatch(r"_(.+)_", text)
    if bold:
        return rf"\textbf{{{bold[1].translate(LATEX)}}}"
    if underlined:
        return rf"\underline{{{underlined[1].translate(LATEX)}}}"
    return text.translate(LATEX)
