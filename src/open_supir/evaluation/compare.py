"""Compare runs: metric means with differences from the first run, and averages over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from open_supir.evaluation.means import (
    NOT_AVAILABLE,
    Footnotes,
    average_records,
    format_cell,
    format_value,
    metric_title,
    not_measured,
)
from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.records import Record
from open_supir.reports.document import Table

MIN_PAIRS = 5  # an interval over fewer images is not worth printing
RESAMPLES = 10_000


Value = tuple[str, str, float, float | None, int]


@dataclass(frozen=True)
class ComparisonTable(Table):
    """A table with one row per run, and the numbers behind it.

    Attributes:
        values: (row, metric, mean, difference from the first run or None, images compared).
    """

    values: Sequence[Value] = ()


def compare_methods(records: Sequence[Record]) -> ComparisonTable:
    """Compare the methods of one run, with paired differences from the first."""
    methods = dict.fromkeys(record["method"] for record in records)
    groups = {m: [{**r, "method": ""} for r in records if r["method"] == m] for m in methods}
    return compare_runs(groups, method="", noun="methods")  # type: ignore[arg-type]


def compare_runs(
    runs: Mapping[str, Sequence[Record]], *, method: str = "restored", noun: str = "runs"
) -> ComparisonTable:
    """Compare one method's metrics across runs, with differences from the first run.

    Differences are means over the images that both runs measured. From MIN_PAIRS images on, they
    come with a 95 % bootstrap interval over images and the p value of a paired test, which show how
    much the result depends on the choice of images, not on the training seed.

    Args:
        runs: Label -> records; runs without records of `method` are omitted.
        noun: What the remarks call the rows.

    Raises:
        ValueError: No run has records of `method`.
    """
    chosen = {
        label: [{**record, "run": label} for record in records if record["method"] == method]
        for label, records in runs.items()
    }
    chosen = {label: records for label, records in chosen.items() if records}
    if not chosen:
        raise ValueError(f"no run has records of method {method!r}")
    everything: list[Any] = [record for records in chosen.values() for record in records]
    means = average_records(everything, by="run")
    scores = {label: _scores(records) for label, records in chosen.items()}  # type: ignore[arg-type]
    first = next(iter(chosen))
    notes = Footnotes()
    rows, values = [], []
    best = {metric: means.best(metric) for metric in means.measured}
    for label in chosen:
        line = [label]
        for metric in means.measured:
            cell = means.cells.get((label, metric))
            text = format_cell(cell, metric, notes)
            text = f"**{text}**" if label in best[metric] else text
            pairs = _pairs(scores[first], scores[label], metric)
            difference = None if label == first or not pairs else fmean(b - a for a, b in pairs)
            if difference is not None:
                text += (
                    f" ({format_value(difference, metric, signed=True)}{_interval(pairs, metric)})"
                )
            if cell is not None and cell.mean is not None:
                values.append((label, metric, cell.mean, difference, len(pairs)))
            line.append(text)
        rows.append(line)
    remarks = [
        *notes.lines(),
        *not_measured(everything, means),
        f"In brackets: difference from {first}, over images of both {noun}.",
        *_cautions(chosen, tests=sum(", p" in text for line in rows for text in line[1:])),  # type: ignore[arg-type]
    ]
    header = [noun.removesuffix("s"), *map(metric_title, means.measured)]
    return ComparisonTable(header, rows, remarks, values)


def _cautions(chosen: Mapping[str, Sequence[Record]], *, tests: int) -> list[str]:
    """Say what a comparison's numbers do not show; `tests` is the number of p values."""
    remarks = []
    if tests:
        remarks.append(
            "[low, high]: 95 % bootstrap interval over images. p: Wilcoxon signed-rank test, "
            f"two-sided, not corrected for there being {tests} of them."
        )
    if len({frozenset(r["image"] for r in records) for records in chosen.values()}) > 1:
        remarks.append("The runs were measured on different images; compare differences only.")
    if len({_protocol(records) for records in chosen.values()}) > 1:
        remarks.append("The runs use different protocols: their values are not comparable.")
    return remarks


def compare_scalars(values: Mapping[str, Mapping[str, float]]) -> ComparisonTable:
    """Compare named numbers (final losses), with relative changes from the first run."""
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    first = next(iter(values.values()), {})
    rows, numbers = [], []
    for index, (label, row) in enumerate(values.items()):
        line = [label]
        for name in names:
            if name not in row:
                line.append("-")
                continue
            text, base = show_number(row[name]), first.get(name)
            difference = None if index == 0 or base is None else row[name] - base
            if difference is not None and base and name not in ("step", "seed"):
                text += f" ({100 * difference / abs(base):+.1f}%)"
            numbers.append((label, name, row[name], difference, 1))
            line.append(text)
        rows.append(line)
    return ComparisonTable(["run", *names], rows, values=numbers)


def average_seeds(values: Sequence[Value], groups: Mapping[str, str]) -> ComparisonTable:
    """Average runs that differ only in their seed: mean and standard deviation over seeds.

    Args:
        groups: Run label -> label without the seed.
    """
    collected: dict[tuple[str, str], list[float]] = {}
    for label, name, value, _, _ in values:
        if name == "step":
            continue
        collected.setdefault((groups[label], name), []).append(value)
    names = list(dict.fromkeys(name for _, name in collected))
    rows, numbers = [], []
    for group in dict.fromkeys(group for group, _ in collected):
        line = [group]
        for name in names:
            seeds = collected.get((group, name), [])
            if not seeds:
                line.append(NOT_AVAILABLE)
                continue
            show = (lambda v, n=name: format_value(v, n)) if name in METRICS else show_number
            spread = f" ± {show(stdev(seeds))}" if len(seeds) > 1 else ""
            line.append(f"{show(fmean(seeds))}{spread} ({len(seeds)})")
            numbers.append((group, name, fmean(seeds), None, len(seeds)))
        rows.append(line)
    note = "Mean ± standard deviation over seeds; in brackets the number of seeds."
    header = ["run", *(metric_title(name) for name in names)]
    return ComparisonTable(header, rows, [note], numbers)


def bootstrap_interval(
    differences: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of paired differences.

    Args:
        differences: One number per image.
    """
    sample = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(differences: Sequence[float]) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test for differences around zero.

    The ranks of exact zeros are split between both signs (zero_method="zsplit"); if all
    differences are zero, p is 1.

    Args:
        differences: One number per image; images must be independent.
    """
    sample = np.asarray(differences, dtype=np.float64)
    if not sample.any():
        return 1.0
    from scipy.stats import wilcoxon  # takes a second

    return float(wilcoxon(sample, zero_method="zsplit").pvalue)  # type: ignore[attr-defined]


def show_p(p: float) -> str:
    """Format a p value with three decimals, or as p<0.001."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def show_number(value: float) -> str:
    """Format a number with four significant digits, integers without decimals."""
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _scores(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    return {(r["image"], r["metric"]): r["value"] for r in records if r["value"] is not None}


def _pairs(
    first: Mapping[tuple[str, str], float], other: Mapping[tuple[str, str], float], metric: str
) -> list[tuple[float, float]]:
    return [(v, other[key]) for key, v in first.items() if key[1] == metric and key in other]


def _interval(pairs: Sequence[tuple[float, float]], metric: str) -> str:
    if len(pairs) < MIN_PAIRS:
        return ""
    differences = [b - a for a, b in pairs]
    low, high = (format_value(v, metric, signed=True) for v in bootstrap_interval(differences))
    return f" [{low}, {high}], {show_p(paired_test(differences))}"


def _protocol(records: Sequence[Record]) -> str:
    return str(records[0]["settings"].get("protocol"))
