"""One document, written as Markdown and as a self-contained HTML page by jinja2 templates.

A document is a list of blocks; templates/ says how each looks. Pictures are files in the folder of
the document: Markdown links them, HTML carries them inside.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_supir.reports.pictures import embed
from open_supir.reports.tables import markdown_table

if TYPE_CHECKING:
    from jinja2 import Environment

SLIDES_BYTES = 13_000_000  # of the pictures of one page; base64 adds a third, 20 MB is the limit


@dataclass(frozen=True)
class Heading:
    """A section title; level 1 is the document's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Lines of a list."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text that stands as it is."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts with marks as in `reports.tables`; notes stand below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """An SVG element; Markdown links the file that holds it, if there is one."""

    svg: str
    caption: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as many as the window is wide."""

    plots: Sequence[Plot]
    width: int = 320  # of one, CSS pixels


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in rows, a title over each column; None leaves a cell empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Path | None]]
    names: Sequence[str]


@dataclass(frozen=True)
class ContactSheet:
    """Small pictures with a line below each, marked as good or bad; only HTML shows them."""

    pictures: Sequence[tuple[str, str]]  # data address, line
    good: bool


@dataclass(frozen=True)
class Slide:
    """One image: its pictures by method, and what is known of it."""

    name: str
    pictures: Mapping[str, Path]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slides:
    """Cards with a before/after slider; two menus choose the methods of all. Only HTML shows them.

    Attributes:
        methods: In the order of the menus.
        left: Chosen first in the left menu.
        right: Chosen first in the right menu.
        slides: The images.
    """

    methods: Sequence[str]
    left: str
    right: str
    slides: Sequence[Slide]

    @property
    def bytes_each(self) -> int:
        """Return how large one picture may be for the page to stay within its limit."""
        return SLIDES_BYTES // max(1, sum(len(slide.pictures) for slide in self.slides))


@dataclass(frozen=True)
class Folded:
    """Blocks that a page shows on demand; only HTML shows them."""

    title: str
    blocks: "Sequence[Block]"


KINDS = (
    Heading, Text, Listing, Code, Table, Plots, PictureGrid, ContactSheet, Slides, Folded,
)  # fmt: skip
Block = (
    Heading | Text | Listing | Code | Table | Plots | PictureGrid | ContactSheet | Slides | Folded
)


def render_markdown(blocks: Sequence[Block], folder: Path = Path()) -> str:
    """Write a document as Markdown, with links relative to `folder`."""
    return render("document.md", blocks=blocks, folder=folder)


def render_html(title: str, blocks: Sequence[Block], *, note: str = "") -> str:
    """Write a document as one HTML page that needs no other file.

    Args:
        title: Of the window.
        blocks: Of the document.
        note: For programs, in the first line of the file.
    """
    return render("document.html", title=title, blocks=blocks, note=note)


def render(template: str, **values: Any) -> str:
    """Fill a template of templates/; values are escaped in HTML."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    import jinja2  # here: only reports need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for kind in KINDS:
        environment.tests[kind.__name__.lower()] = lambda block, kind=kind: isinstance(block, kind)
    environment.filters |= {
        "breakable": _breakable, "embed": embed, "inline": _inline, "link": _link,
        "markdown_table": markdown_table,
    }  # fmt: skip
    return environment


def _inline(text: str) -> str:
    """Escape a text for HTML and turn its marks and addresses into elements."""
    from markupsafe import Markup, escape

    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text)))
    text = re.sub(r"^_([^_]+)_$", r"<u>\1</u>", text)
    return Markup(re.sub(r"(https://[^\s;&<]+)", r'<a href="\1">\1</a>', text))


def _breakable(text: str) -> str:
    """Escape a text for HTML and let long names break after their signs."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([=_,/])", r"\1<wbr>", str(escape(text))))


def _link(path: Path | None, folder: Path, caption: str = "") -> str:
    """Return a Markdown image, or nothing without a path."""
    if path is None:
        return ""
    return f"![{caption}]({path.relative_to(folder).as_posix().replace(' ', '%20')})"
