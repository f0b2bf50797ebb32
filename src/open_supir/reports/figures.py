"""Plots as SVG text, drawn by matplotlib without a display."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito
DASHES = ("-", "--", "-.", ":")
BINS = 48
LONG_LABEL = 40  # characters; two longer labels do not fit side by side


def draw_curves(
    title: str, curves: Mapping[str, Sequence[tuple[int, float]]], *, smooth: int = 1
) -> str:
    """Draw one scalar of several runs over steps.

    Args:
        curves: Label -> (step, value), sorted by step.
        smooth: Width of the running mean; above 1, the raw curve is drawn faintly behind it.
    """
    columns = 1 if max(map(len, curves)) > LONG_LABEL else 2
    figure, axes = _axes(5.6, 3.4 + 0.17 * math.ceil(len(curves) / columns))
    for index, (label, curve) in enumerate(curves.items()):
        color, dash = COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        width = min(smooth, len(values))
        if width > 1:
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        marker = "o" if len(values) < 20 else None
        mean = running_mean(values, width)
        axes.plot(steps, mean, dash, color=color, label=label, marker=marker, markersize=3)
    values = [value for curve in curves.values() for _, value in curve]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(title + (f" (mean of {smooth})" if smooth > 1 else ""))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    return _svg(figure)


def draw_scatter(
    title: str, base: str, points: Mapping[str, Sequence[tuple[str, float, float]]]
) -> str:
    """Draw one dot per image: a metric of each method against the same metric of `base`.

    Hovering over a dot shows its image and values.

    Args:
        base: Name of the method on the x axis.
        points: Method -> (image, x, y).
    """
    figure, axes = _axes(3.6, 3.9)
    hints = []
    for index, (method, dots) in enumerate(points.items()):
        x, y = [x for _, x, _ in dots], [y for _, _, y in dots]
        color = COLORS[index % len(COLORS)]
        axes.scatter(x, y, s=22, color=color, alpha=0.65, linewidths=0, label=method, gid="dots")
        hints += [f"{image}, {method}: {x:.4g}, {y:.4g}" for image, x, y in dots]
    values = [value for dots in points.values() for _, *pair in dots for value in pair]
    margin = 0.04 * (max(values) - min(values)) or 1.0
    low, high = min(values) - margin, max(values) + margin
    axes.plot([low, high], [low, high], color="#d9dce1", zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_title(title, loc="left")
    axes.set_xlabel(base)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    return _svg(figure, hints)


def draw_histogram(values: np.ndarray, edges: Sequence[tuple[str, float]]) -> str:
    """Draw the distribution of finite values, with a line at each threshold (side, value).

    The highest half percent is counted in the last bar.
    """
    low, high = np.quantile(values, [0, 0.995])
    low = min([low, *(value for _, value in edges)])
    high = max([high, low + 1e-9, *(value for _, value in edges)])
    figure, axes = _axes(5.2, 1.7)
    axes.hist(values.clip(low, high), bins=BINS, range=(low, high), color="#6688aa", rwidth=0.9)
    for side, value in edges:
        axes.axvline(value, color="#cc3333", linewidth=2, label=f"{side} {value:g}")
    axes.set_ylabel("images")
    if edges:
        axes.legend(fontsize=8)
    return _svg(figure)


def draw_shares(title: str, values: Mapping[str, np.ndarray]) -> str:
    """Draw cumulative distributions: the share of each label's values that is not larger."""
    figure, axes = _axes(4.2, 2.9)
    for index, (label, given) in enumerate(values.items()):
        ranked = np.sort(given)
        shares = np.arange(1, len(ranked) + 1) / len(ranked)
        dash = DASHES[index % len(DASHES)]
        axes.step(ranked, shares, dash, where="post", color=COLORS[index], label=label)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel("share")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", ncols=len(values), fontsize=8, frameon=False)
    return _svg(figure)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of the last `width` values at each point, or of fewer at the start."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # late: only reports need it

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: "Figure", hints: Sequence[str] = ()) -> str:
    """Return the figure as an SVG element with hints on its dots; the output is deterministic."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "open-supir"}):
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=none)
    root = ElementTree.fromstring(stream.getvalue())
    for element in root.iter():  # SVG within HTML has no XML namespaces
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
    dots = [use for group in root.iterfind(".//g[@id='dots']") for use in group.iter("use")]
    for dot, text in zip(dots, hints, strict=True):
        ElementTree.SubElement(dot, "title").text = text
    root.set("xmlns", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(root, encoding="unicode")
