"""One document, written as Markdown and as a self-contained HTML page.

Pictures are files in the folder of the document: Markdown links them, HTML carries them inside.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from open_supir.evaluation import widgets
from open_supir.evaluation.tables import markdown_table
from open_supir.evaluation.widgets import Scatter, Slides, embed

LARGE_FILE, LARGE_SIDE = 300_000, 768  # bytes, pixels: above, reports carry a smaller copy


@dataclass(frozen=True)
class Heading:
    """A section title; level 1 is the document's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Lines of a list."""

    lines: Sequence[str]


@dataclass(frozen=True)
class DataTable:
    """A table of texts: `**x**` is bold, a whole cell `_x_` underlined. Notes stand below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """One picture over the whole width."""

    path: Path
    caption: str


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in rows, a title over each column; None leaves a cell empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Path | None]]
    names: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plots:
    """Scatter plots in a grid; only the page shows them."""

    plots: Sequence[Scatter]


@dataclass(frozen=True)
class Folded:
    """Blocks that the page shows when asked; Markdown shows them plainly."""

    title: str
    blocks: "Sequence[Block]"


Block = Heading | Paragraph | Listing | DataTable | Figure | PictureGrid | Plots | Slides | Folded

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 16px;
       color: #1c1e21; background: #fff; }
summary { cursor: pointer; }
h1 { font-size: 24px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin-top: 32px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid #d9dce1; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.notes { color: #555; font-size: 13px; overflow-wrap: anywhere; }
figure { margin: 12px 0; } figure img { max-width: 100%; }
.pictures table { width: 100%; }
.pictures img { width: 100%; max-width: 420px; image-rendering: pixelated; }
.pictures td, .pictures th { padding: 3px; border: 0; text-align: center; font-weight: normal;
                             width: 240px; min-width: 110px; vertical-align: bottom;
                             white-space: normal; overflow-wrap: anywhere; }
.pictures th:first-child, .pictures td:first-child { width: 70px; min-width: 70px; }
"""


def render_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Write the document as Markdown, with links relative to `folder`."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append("#" * level + " " + text)
            case Paragraph(text):
                parts.append(text)
            case Listing(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case DataTable(header, rows, notes):
                parts.append(markdown_table(header, rows))
                if notes:
                    parts.append("\n".join(f"{note}  " for note in notes))
            case Figure(path, caption):
                parts.append(f"![{caption}]({_link(path, folder)})")
            case PictureGrid(header, rows, names):
                lines = [
                    [name, *("" if p is None else f"![]({_link(p, folder)})" for p in row)]
                    for name, row in zip(_row_names(rows, names), rows, strict=True)
                ]
                parts.append(markdown_table(["", *header], lines))
            case Folded(title, inner):
                parts.append(f"## {title}\n\n" + render_markdown(inner, folder).rstrip())
            case Plots() | Slides():
                pass
    return "\n\n".join(parts) + "\n"


def render_html(title: str, blocks: Sequence[Block]) -> str:
    """Write the document as one HTML page that needs no other file."""
    style = STYLE + widgets.STYLE
    moving = any(isinstance(block, Slides) for block in blocks)
    script = f"<script>{widgets.SCRIPT}</script>" if moving else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>\n"
        + "\n".join(map(_html, blocks))
        + f"\n{script}</body></html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Listing(lines):
            items = "".join(f"<li>{_inline(line)}</li>" for line in lines)
            return f'<ul class="notes">{items}</ul>'
        case DataTable(header, rows, notes):
            lines = [[_inline(cell) for cell in row] for row in rows]
            table = _html_table([html.escape(text) for text in header], lines, "wide")
            below = "<br>".join(map(_inline, notes))
            return table + (f'<p class="notes">{below}</p>' if notes else "")
        case Figure(path, caption):
            return (
                f'<figure><img src="{embed(path, LARGE_FILE)}" alt="{html.escape(caption)}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
        case PictureGrid(header, rows, names):
            lines = [
                [html.escape(name), *("" if p is None else _image(p) for p in row)]
                for name, row in zip(_row_names(rows, names), rows, strict=True)
            ]
            return _html_table(["", *map(html.escape, header)], lines, "wide pictures")
        case Plots(plots):
            return widgets.scatter_html(plots)
        case Slides():
            return widgets.slides_html(block)
        case Folded(title, inner):
            body = "\n".join(map(_html, inner))
            return f"<details><summary>{html.escape(title)}</summary>\n{body}</details>"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{text}</th>" for text in header)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="{kind}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _inline(text: str) -> str:
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    bold = re.sub(r"^_([^_]+)_$", r"<u>\1</u>", bold)
    return re.sub(r"(https://[^\s;&<]+)", r'<a href="\1">\1</a>', bold)


def _image(path: Path) -> str:
    return f'<img src="{embed(path, LARGE_FILE)}" alt="{html.escape(path.stem)}">'


def _link(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().replace(" ", "%20")


def _row_names(rows: Sequence[object], names: Sequence[str]) -> list[str]:
    return [*names, *([""] * (len(rows) - len(names)))]
