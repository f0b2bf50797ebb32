"""One document, written as Markdown and as a self-contained HTML page by jinja2 templates.

A document is a list of blocks, rendered by templates/. Pictures are files in the document's folder:
Markdown links to them, HTML embeds them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from open_supir.reports.pictures import embed
from open_supir.reports.tables import markdown_table

if TYPE_CHECKING:
    from jinja2 import Environment

SLIDES_BYTES = 13_000_000  # all pictures of a page; base64 adds a third, the limit is 20 MB


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """A bulleted list."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """A preformatted text."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts, with the markup of `reports.tables` and notes below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """An SVG element; Markdown links to its file, if there is one."""

    svg: str
    caption: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Plots:
    """Plots side by side, as many as fit the window."""

    plots: Sequence[Plot]
    width: int = 320  # of one plot, in CSS pixels


@dataclass(frozen=True)
class PictureGrid:
    """Rows of pictures with column titles; None leaves a cell empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Path | None]]
    names: Sequence[str]


@dataclass(frozen=True)
class ContactSheet:
    """Thumbnails with captions, marked as good or bad; HTML only."""

    pictures: Sequence[tuple[str, str]]  # data URL, caption
    good: bool


@dataclass(frozen=True)
class Slide:
    """One image: its pictures by method, and facts about it."""

    name: str
    pictures: Mapping[str, Path]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Slides:
    """Cards with a before/after slider; two menus choose the methods for all. HTML only."""

    methods: Sequence[str]  # in the order of the menus
    left: str  # initial choice of the left menu
    right: str  # initial choice of the right menu
    slides: Sequence[Slide]  # the images

    @property
    def bytes_each(self) -> int:
        """Return the size limit of one picture that keeps the page within its limit."""
        return SLIDES_BYTES // max(1, sum(len(slide.pictures) for slide in self.slides))


@dataclass(frozen=True)
class Folded:
    """Blocks that a page shows on demand; HTML only."""

    title: str
    blocks: "Sequence[Block]"


Block = (
    Heading | Text | Listing | Code | Table | Plots | PictureGrid | ContactSheet | Slides | Folded
)


def render_markdown(blocks: Sequence[Block], folder: Path = Path()) -> str:
    """Render a document as Markdown, with links relative to `folder`."""
    return render("document.md", blocks=blocks, folder=folder)


def render_html(title: str, blocks: Sequence[Block], *, note: str = "") -> str:
    """Render a document as one self-contained HTML page.

    Args:
        note: Machine-readable note in the first line of the file.
    """
    return render("document.html", title=title, blocks=blocks, note=note)


def render(template: str, **values: Any) -> str:
    """Render a template of templates/; values are escaped in HTML."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    import jinja2  # late: only reports need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for kind in get_args(Block):
        environment.tests[kind.__name__.lower()] = lambda block, kind=kind: isinstance(block, kind)
    environment.filters |= {
        "breakable": _breakable, "embed": embed, "inline": _inline, "link": _link,
        "markdown_table": markdown_table,
    }  # fmt: skip
    return environment


def _inline(text: str) -> str:
    """Escape a text for HTML and turn its markup and URLs into elements."""
    from markupsafe import Markup, escape

    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text)))
    text = re.sub(r"^_([^_]+)_$", r"<u>\1</u>", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"(https://[^\s;&<]+)", r'<a href="\1">\1</a>', text))


def _breakable(text: str) -> str:
    """Escape a text for HTML and allow line breaks after punctuation in long names."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([=_,/])", r"\1<wbr>", str(escape(text))))


def _link(path: Path | None, folder: Path, caption: str = "") -> str:
    """Return a Markdown image, or an empty string without a path."""
    if path is None:
        return ""
    return f"![{caption}]({path.relative_to(folder).as_posix().replace(' ', '%20')})"
