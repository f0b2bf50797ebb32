"""Plots as SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from open_supir.reports.figures import draw_curves, draw_histogram, draw_scatter, running_mean


def test_running_mean_uses_fewer_values_at_the_beginning() -> None:
    assert running_mean([2.0, 4.0, 6.0, 8.0], 2) == pytest.approx([2.0, 3.0, 5.0, 7.0])


def test_scatter_names_its_dots_and_draws_them_in_order_of_value() -> None:
    points = {"m": [("a", 0.0, 0.0), ("<b>", 10.0, 5.0)]}
    svg = draw_scatter("PSNR", "lq", points)
    dots = ElementTree.fromstring(svg).findall(".//{*}g[@id='dots']//{*}use")
    assert [dot.findtext("{*}title") for dot in dots] == ["a, m: 0, 0", "<b>, m: 10, 5"]
    (x0, y0), (x1, y1) = [(float(d.get("x", "")), float(d.get("y", ""))) for d in dots]
    # both axes have one scale: 10 to the right is twice as far as 5 up
    assert x1 - x0 == pytest.approx(2 * (y0 - y1), rel=1e-3) and x1 > x0
    frame = ElementTree.fromstring(svg).find(".//{*}clipPath/{*}rect")
    assert frame is not None and x0 > float(frame.get("x", "")) + 5  # no dot is cut at the edge
    assert "<b>" not in svg and svg == draw_scatter("PSNR", "lq", points)


def test_plots_hold_their_text_and_fetch_nothing() -> None:
    curves = {"a & b": [(1, 1.0), (2, 100.0)], "c": [(1, 2.0)]}
    histogram = draw_histogram(np.arange(100.0), [("min", 12.5), ("max", 300.0)])
    for svg, words in (
        (draw_curves("val/loss", curves, smooth=3), ["a &amp; b", "val/loss (mean of 3)", "step"]),
        (histogram, ["min 12.5", "max 300", "images"]),
    ):
        assert all(f">{word}<" in svg for word in words)
        assert not re.search(r'(src|href)="(?!#)', svg) and "<image" not in svg
