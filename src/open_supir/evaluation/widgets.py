"""Parts of the HTML page that one can look at: scatter plots, and pictures behind a slider.

Plain HTML, inline SVG and a few lines of script; nothing is fetched. Without scripts all pictures
stand side by side.
"""

import base64
import html
import io
import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PICTURE_BYTES = 13_000_000  # of all pictures of one page; base64 adds a third, and 20 MB is asked
SIDES = (1024, 768, 512, 384, 256, 160, 96)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")  # Okabe-Ito
PLOT = 300  # side of a plot in its own units; the margin holds the numbers
MARGIN = 44


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One dot an image: a metric of each method over the same metric of the first.

    Attributes:
        title: Of the metric.
        base: Name of the method on the x axis.
        points: Method -> (image, x, y).
    """

    title: str
    base: str
    points: Mapping[str, Sequence[tuple[str, float, float]]]


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One image: its pictures by method, and what is known of it."""

    name: str
    pictures: Mapping[str, Path]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Slides:
    """Cards with a before/after slider; two menus choose what is compared, for all at once.

    Attributes:
        methods: In the order of the menus; the first two that are chosen are `left` and `right`.
        slides: The images.
    """

    methods: Sequence[str]
    left: str
    right: str
    slides: Sequence[Slide]


STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
         gap: 12px; }
.plots figure { margin: 0; } .plots svg { width: 100%; height: auto; }
.plots text { font: 11px system-ui, sans-serif; fill: #555; }
.key { display: inline-block; margin-right: 14px; white-space: nowrap; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 5px; }
.menus { position: sticky; top: 0; z-index: 2; background: #fff; padding: 8px 0; }
.menus select { font: inherit; max-width: 42%; }
.slides { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
          gap: 16px; }
.slides figure { margin: 0; min-width: 0; }
.slides .pair { position: relative; overflow: hidden; background: #eee; }
.slides .pair img { width: 100%; display: block; image-rendering: pixelated; }
.js .slides .pair img { position: absolute; inset: 0; height: 100%; visibility: hidden; }
.js .slides .pair img.sizer { position: static; height: auto; }
.js .slides .pair img.left { visibility: visible;
                             clip-path: inset(0 calc(100% - var(--cut, 50%)) 0 0); }
.js .slides .pair img.right { visibility: visible; clip-path: inset(0 0 0 var(--cut, 50%)); }
.js .slides .pair::after { content: ""; position: absolute; top: 0; bottom: 0; width: 2px;
       left: calc(var(--cut, 50%) - 1px); background: #fff; box-shadow: 0 0 3px #000; }
.slides input { width: 100%; margin: 4px 0 0; } html:not(.js) .slides input { display: none; }
.slides figcaption { font-size: 13px; overflow-wrap: anywhere; }
.slides details { color: #555; } .slides pre { white-space: pre-wrap; margin: 4px 0; }
"""

SCRIPT = """
document.documentElement.classList.add("js");
document.querySelectorAll(".slides").forEach(grid => {
  const menus = grid.previousElementSibling.querySelectorAll("select");
  const show = () => grid.querySelectorAll("img").forEach(image => {
    image.classList.toggle("left", image.dataset.m === menus[0].value);
    image.classList.toggle("right", image.dataset.m === menus[1].value);
  });
  menus.forEach(menu => menu.addEventListener("change", show));
  grid.addEventListener("input", event =>
    event.target.previousElementSibling.style.setProperty("--cut", event.target.value + "%"));
  show();
});
"""


def scatter_html(plots: Sequence[Scatter]) -> str:
    """Draw the plots, with one key for all."""
    methods = list(dict.fromkeys(method for plot in plots for method in plot.points))
    colors = {m: COLORS[index % len(COLORS)] for index, m in enumerate(methods)}
    keys = "".join(
        f'<span class="key"><i style="background:{color}"></i>{html.escape(method)}</span>'
        for method, color in colors.items()
    )
    figures = "".join(f"<figure>{_plot(plot, colors)}</figure>" for plot in plots)
    return f'<p>{keys}</p><div class="plots">{figures}</div>'


def _plot(plot: Scatter, colors: Mapping[str, str]) -> str:
    values = [value for dots in plot.points.values() for _, *pair in dots for value in pair]
    low, high = min(values), max(values)
    high = high if high > low else low + 1

    def place(value: float) -> float:
        return (value - low) / (high - low) * PLOT

    dots = "".join(
        f'<circle cx="{place(x):.1f}" cy="{PLOT - place(y):.1f}" r="3.5" fill="{colors[method]}"'
        f' fill-opacity=".65"><title>{html.escape(f"{image}, {method}: {x:.4g}, {y:.4g}")}'
        "</title></circle>"
        for method, points in plot.points.items()
        for image, x, y in points
    )
    label, side = html.escape(plot.title), PLOT + MARGIN + 8
    return (
        f'<svg viewBox="{-MARGIN} -22 {side} {side + 22}" role="img" aria-label="{label}">'
        f'<rect width="{PLOT}" height="{PLOT}" fill="none" stroke="#d9dce1"/>'
        f'<line x1="0" y1="{PLOT}" x2="{PLOT}" y2="0" stroke="#d9dce1"/>{dots}'
        f'<text x="0" y="-7">{label}</text>'
        f'<text x="0" y="{PLOT + 16}">{low:.4g}</text>'
        f'<text x="{PLOT}" y="{PLOT + 16}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{PLOT / 2}" y="{PLOT + 16}" text-anchor="middle">{html.escape(plot.base)}</text>'
        f'<text x="-5" y="{PLOT}" text-anchor="end">{low:.4g}</text>'
        f'<text x="-5" y="10" text-anchor="end">{high:.4g}</text></svg>'
    )


def slides_html(grid: Slides) -> str:
    """Lay out the cards; pictures are carried inside, within PICTURE_BYTES in all."""
    count = sum(len(slide.pictures) for slide in grid.slides)
    each = PICTURE_BYTES // max(1, count)
    menus = " &harr; ".join(
        f"<select>{_options(grid.methods, chosen)}</select>" for chosen in (grid.left, grid.right)
    )
    cards = "".join(_card(slide, each) for slide in grid.slides)
    return f'<p class="menus">{menus}</p><div class="slides">{cards}</div>'


def _options(methods: Sequence[str], chosen: str) -> str:
    return "".join(
        f"<option{' selected' if method == chosen else ''}>{html.escape(method)}</option>"
        for method in methods
    )


def _card(slide: Slide, each: int) -> str:
    images = "".join(
        f'<img{" class=sizer" if index == 0 else ""} data-m="{html.escape(method)}"'
        f' src="{embed(path, each)}" alt="{html.escape(f"{slide.name}, {method}")}">'
        for index, (method, path) in enumerate(slide.pictures.items())
    )
    name = html.escape(slide.name)
    facts = html.escape("\n".join(f"{key}: {_plain(value)}" for key, value in slide.facts.items()))
    details = f"<details><summary>{name}</summary><pre>{facts}</pre></details>" if facts else name
    return (
        f'<figure><div class="pair">{images}</div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}: left and right">'
        f"<figcaption>{details}</figcaption></figure>"
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def embed(path: Path, most: int, *, alike: bool = False) -> str:
    """Return a picture as a data address of at most `most` bytes before base64, if that can be.

    The file itself where it is small enough; else a JPEG, smaller until it fits. `alike` makes a
    JPEG of the largest side allowed of every picture: nothing but its content tells it from others.
    """
    content = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    if alike or len(content) > most:
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
        for side in SIDES:
            small = whole.copy()
            small.thumbnail((side, side))
            stream = io.BytesIO()
            small.save(stream, format="JPEG", quality=88)
            content, kind = stream.getvalue(), "image/jpeg"
            if alike or len(content) <= most:
                break
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
