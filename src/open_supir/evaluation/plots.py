"""Training curves of several runs as pictures, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from open_supir.evaluation.runs import Curve

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe-Ito
DASHES = ("-", "--", "-.", ":")
MAX_LEGEND = 16


def plot_curves(title: str, curves: Mapping[str, Curve], path: Path, *, smooth: int = 1) -> None:
    """Draw one scalar of several runs over steps.

    Args:
        title: Name of the scalar.
        curves: Run label -> points.
        path: PNG file to write.
        smooth: Width of the running mean; above 1 the raw curve shows faintly behind.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for index, (label, curve) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        dash = DASHES[index // len(COLORS) % len(DASHES)]
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        width = min(smooth, len(values))
        marker = "o" if len(values) < 20 else None
        if width > 1:
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        mean = running_mean(values, width)
        axes.plot(
            steps, mean, dash, color=color, label=label, marker=marker, markersize=3, linewidth=1.6
        )
    values = [value for curve in curves.values() for _, value in curve]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(title + (f" (mean of {smooth})" if smooth > 1 else ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best", ncols=1 + len(curves) // MAX_LEGEND)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of the last `width` values at each place, of fewer at the beginning."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - width] if index >= width else 0.0)
        means.append(total / min(index + 1, width))
    return means
