"""One document, written as Markdown and as a self-contained HTML page.

Pictures are files in the folder of the document: Markdown links them, HTML carries them inside.
"""

import base64
import html
import io
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from src.evaluation.tables import markdown_table

LARGE_FILE, LARGE_SIDE = 300_000, 768  # bytes, pixels: above, pages carry a smaller copy


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
    """A table of texts; `**x**` is bold. Notes stand below it, one a line."""

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


Block = Heading | Paragraph | Listing | DataTable | Figure | PictureGrid

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1500px; padding: 16px;
       color: #1c1e21; background: #fff; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 32px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid #d9dce1; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.notes { color: #555; font-size: 13px; overflow-wrap: anywhere; }
figure { margin: 12px 0; } figure img { max-width: 100%; }
.pictures img { min-width: 96px; width: 100%; max-width: 420px; image-rendering: pixelated; }
.pictures td, .pictures th { padding: 3px; border: 0; text-align: center; font-weight: normal; }
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
    return "\n\n".join(parts) + "\n"


def render_html(title: str, blocks: Sequence[Block]) -> str:
    """Write the document as one HTML page that needs no other file."""
    body: list[str] = []
    for block in blocks:
        match block:
            case Heading(text, level):
                body.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Paragraph(text):
                body.append(f"<p>{_inline(text)}</p>")
            case Listing(lines):
                items = "".join(f"<li>{_inline(line)}</li>" for line in lines)
                body.append(f'<ul class="notes">{items}</ul>')
            case DataTable(header, rows, notes):
                lines = [[_inline(cell) for cell in row] for row in rows]
                body.append(_html_table([html.escape(text) for text in header], lines, "wide"))
                if notes:
                    body.append('<p class="notes">' + "<br>".join(map(_inline, notes)) + "</p>")
            case Figure(path, caption):
                body.append(
                    f'<figure><img src="{_embed(path)}" alt="{html.escape(caption)}">'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
            case PictureGrid(header, rows, names):
                lines = [
                    [html.escape(name), *("" if p is None else _image(p) for p in row)]
                    for name, row in zip(_row_names(rows, names), rows, strict=True)
                ]
                titles = ["", *map(html.escape, header)]
                body.append(_html_table(titles, lines, "wide pictures"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{text}</th>" for text in header)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="{kind}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _inline(text: str) -> str:
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"(https://[^\s;&<]+)", r'<a href="\1">\1</a>', bold)


def _image(path: Path) -> str:
    return f'<img src="{_embed(path)}" alt="{html.escape(path.stem)}">'


def _embed(path: Path) -> str:
    """Return a picture as a data address; a large file is carried as a smaller JPEG."""
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    if len(content) > LARGE_FILE:
        stream = io.BytesIO()
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((LARGE_SIDE, LARGE_SIDE))
        small.save(stream, format="JPEG", quality=88)
        content, kind = stream.getvalue(), "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _link(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix().replace(" ", "%20")


def _row_names(rows: Sequence[object], names: Sequence[str]) -> list[str]:
    return [*names, *([""] * (len(rows) - len(names)))]
