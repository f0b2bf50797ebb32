"""The page of a fitted degradation: ranges, distances before and after, crops side by side."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from open_supir.base.images.write import write_image
from open_supir.degradation.fit import TOLD, UNTOLD, Comparison, Fit
from open_supir.degradation.fit_bank import measure_all
from open_supir.degradation.fit_crops import Photographs
from open_supir.degradation.fit_ranges import SEARCHED
from open_supir.degradation.statistics import NAMES
from open_supir.reports.document import (
    Block,
    Heading,
    Listing,
    PictureGrid,
    Plot,
    Plots,
    Table,
    Text,
    render_html,
)
from open_supir.reports.figures import draw_shares

YOURS = "photographs"
ROWS = 8  # of crops
LEAST_P = 0.01
MEANING = {
    "blur": "blur, sigma in pixels",
    "down": "reduction, then enlarged again",
    "sigma": "Gaussian noise, in 255ths",
    "poisson": "Poisson noise, factor",
    "jpeg": "JPEG quality",
    "gaussian_prob": "share of Gaussian noise",
    "gray_prob": "share of grey noise",
    "jpeg_prob": "share of JPEGs",
}
CAVEATS = (
    "Blur and reduction both take fine detail, and noise hides which it was: a stronger blur with "
    "less reduction often fits as well. Read the two ranges together; their intervals are wide.",
    "The noise of Gaussian and Poisson kind is told apart by its growth with brightness, and grey "
    "noise from coloured by its colours, most of which JPEG takes away at low quality.",
    "Blur of 0.2 pixels and noise of 0.5 levels, the least that is looked for, mean none.",
    "Intervals count on clean pictures as sharp as the photographs once were. If the photographs "
    "were softer before they were degraded, that softness is found as blur.",
    "Noise and JPEG are those at the photographs' own size; if they were enlarged after their "
    "JPEG, reduce them to their real size first.",
    "Motion blur, sharpening, scratches, colour casts and a second JPEG are not looked for.",
)


def fit_page(
    photographs: Photographs, fit: Fit, comparisons: Mapping[str, Comparison], *, title: str
) -> str:
    """Return the page.

    Args:
        comparisons: By name; the fitted preset is the last, what it is compared with before it.
        title: Name of the preset.
    """
    with TemporaryDirectory() as folder:
        blocks = [
            Heading(f"Degradation {title}", 1),
            Listing(_read(photographs)),
            Heading("Ranges"),
            _ranges(fit),
            Heading("Distances"),
            _distances(photographs, comparisons),
            Heading("Crops"),
            Text("Not the same pictures: noise, blocks and softness are to be compared."),
            _crops(photographs, comparisons, Path(folder)),
            Heading("Distributions"),
            _plots(photographs, comparisons),
        ]
        return render_html(f"Degradation {title}", blocks)


def _read(photographs: Photographs) -> list[str]:
    lines = [f"{len(photographs.crops)} photographs, a crop of each of "
             f"{photographs.crops.shape[-1]} x {photographs.crops.shape[-1]} pixels"]  # fmt: skip
    lines += [f"left out: {count} {why}" for why, count in sorted(photographs.skipped.items())]
    return lines + [f"JPEG quality of {count} from: {source}"
                    for source, count in sorted(photographs.sources.items())]  # fmt: skip


def _ranges(fit: Fit) -> Table:
    rows = []
    for name in (*SEARCHED, "jpeg"):
        low, high = getattr(fit.ranges, name)
        sure = [f"{a:.3g} to {b:.3g}" for a, b in fit.ends[name]]
        for number, end in enumerate(("low", "high")):
            sure[number] += _told(fit, f"{name} {end}")
        rows.append([MEANING[name], f"**{low:.3g} to {high:.3g}**", *sure])
    for name, (low, high) in fit.shares.items():
        share = f"**{getattr(fit.ranges, name):.2f}**"
        rows.append([MEANING[name], share, f"{low:.2f} to {high:.2f}{_told(fit, name)}", ""])
    header = ["", "range", "low end, 90 %", "high end, 90 %"]
    held = np.array(list(fit.coverage.values()))
    notes = (
        "The ranges are medians. 90 %: of all presets whose photographs could look like these, "
        "nine in ten have their end, or share, in the interval. Counted on simulated sets of "
        f"pictures not learned from, it was {100 * held.mean():.0f} % ({100 * held.min():.0f} to "
        f"{100 * held.max():.0f} % by end). JPEG: if qualities are uniform between the ends.",
        f"{UNTOLD.capitalize()}: the interval is wider than {100 * TOLD:.0f} % of the one that was "
        "known before the photographs were seen. The number is a guess from its middle.",
        *CAVEATS,
    )
    return Table(header, rows, notes)


def _told(fit: Fit, name: str) -> str:
    return f" ({UNTOLD})" if name in fit.untold else ""


def _distances(photographs: Photographs, comparisons: Mapping[str, Comparison]) -> Table:
    header = ["statistic", *(f"{name}: {what}" for name in comparisons for what in ("W", "KS p"))]
    rows = []
    for i, statistic in enumerate(NAMES):
        row = [statistic.replace("_", " ")]
        for compared in comparisons.values():
            p = f"{compared.p[i]:.2g}"
            row += [f"{compared.distance[i]:.2f}", f"_{p}_" if compared.p[i] <= LEAST_P else p]
        rows.append(row)
    means = [cell for c in comparisons.values() for cell in (f"**{c.distance.mean():.2f}**", "")]
    note = (
        f"W: Wasserstein distance to the {len(photographs.crops)} photographs, in their standard "
        "deviations. KS p: two-sample Kolmogorov-Smirnov test; underlined at 0.01 and below. What "
        "is pictured counts too: other motifs differ in chroma, gradients and slope, however well "
        "the degradation fits."
    )
    return Table(header, [*rows, ["mean", *means]], (note,))


def _crops(
    photographs: Photographs, comparisons: Mapping[str, Comparison], folder: Path
) -> PictureGrid:
    count = min(ROWS, len(photographs.crops))
    columns = {YOURS: photographs.crops} | {n: c.crops for n, c in list(comparisons.items())[::-1]}
    rows = []
    for number in range(count):
        row = []
        for crops in columns.values():
            path = folder / f"{len(row)}-{number}.png"
            write_image(path, crops[number * len(crops) // count].float() / 255)
            row.append(path)
        rows.append(row)
    names = [photographs.names[number * len(photographs.crops) // count] for number in range(count)]
    return PictureGrid(list(columns), rows, names)


def _plots(photographs: Photographs, comparisons: Mapping[str, Comparison]) -> Block:
    given = measure_all(photographs.crops, photographs.quality)
    plots = []
    for i, name in enumerate(NAMES):
        values = {YOURS: given[:, i]} | {n: c.values[:, i] for n, c in comparisons.items()}
        plots.append(Plot(draw_shares(name.replace("_", " "), values), name))
    return Plots(plots)
