"""Runs side by side: differences, intervals, seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from open_supir.evaluation.compare import (
    average_seeds,
    bootstrap_interval,
    compare_methods,
    compare_runs,
    compare_scalars,
    paired_test,
    show_number,
)
from open_supir.evaluation.records import Record


def _records(values: dict[str, float], *, method: str = "restored", protocol: str = "demo"):
    return [
        Record(
            image=image,
            method=method,
            metric="psnr",
            value=value,
            run="x",
            settings={"protocol": protocol},
            status="ok",
            reason="",
        )  # fmt: skip
        for image, value in values.items()
    ]


def test_differences_are_paired_over_common_images() -> None:
    runs = {
        "base": _records({"a": 20.0, "b": 30.0}),
        "other": _records({"b": 31.0, "c": 10.0}),
    }
    comparison = compare_runs(runs)
    assert comparison.rows[1] == ["other", "20.50 (+1.00)"]
    assert comparison.values[1] == ("other", "psnr", 20.5, 1.0, 1)
    assert any("different images" in note for note in comparison.notes)


def test_interval_appears_from_five_images_on() -> None:
    base = {str(i): 20.0 + i for i in range(5)}
    better = {name: value + 1 + (0.1 if name == "0" else 0) for name, value in base.items()}
    (_, (_, text)) = compare_runs({"base": _records(base), "b": _records(better)}).rows
    assert text.startswith("**23.02** (+1.02 [+1.00, ")


def test_compare_runs_warns_when_protocols_differ() -> None:
    runs = {"a": _records({"x": 1.0}), "b": _records({"x": 1.0}, protocol="other")}
    assert any("different protocols" in note for note in compare_runs(runs).notes)


def test_compare_runs_names_a_method_that_nobody_has() -> None:
    with pytest.raises(ValueError, match="no run has records of method 'restored'"):
        compare_runs({"a": _records({"x": 1.0}, method="lq")})


def test_bootstrap_interval_covers_like_the_normal_approximation() -> None:
    sample = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = bootstrap_interval(sample.tolist())
    expected = stats.norm.interval(0.95, sample.mean(), sample.std() / math.sqrt(len(sample)))
    # 10000 resamples: the ends wander by about 0.002
    assert (low, high) == pytest.approx(expected, abs=0.01)
    assert (low, high) == bootstrap_interval(sample.tolist())


def test_scalars_show_the_relative_change_from_the_first_run() -> None:
    comparison = compare_scalars({"a": {"val/loss": 0.5, "step": 20}, "b": {"val/loss": 0.4}})
    assert comparison.header == ["run", "val/loss", "step"]
    assert comparison.rows == [["a", "0.5", "20"], ["b", "0.4 (-20.0%)", "-"]]


def test_seeds_are_averaged_with_their_spread() -> None:
    values = [
        ("k=a seed=0", "psnr", 20.0, None, 3),
        ("k=a seed=1", "psnr", 22.0, None, 3),
        ("k=b seed=0", "psnr", 25.0, None, 3),
    ]
    groups = {"k=a seed=0": "k=a", "k=a seed=1": "k=a", "k=b seed=0": "k=b"}
    rows = average_seeds(values, groups).rows
    # the standard deviation of 20 and 22 with n - 1 is sqrt(2)
    assert rows == [["k=a", "21.00 ± 1.41 (2)"], ["k=b", "25.00 (1)"]]


def test_numbers_have_four_digits() -> None:
    assert [show_number(x) for x in (20.0, 0.123456, 12345.678)] == ["20", "0.1235", "1.235e+04"]


def test_paired_test_of_differences_of_one_sign_counts_the_signs() -> None:
    """Six positive differences of distinct size: 2 of the 2^6 sign patterns are as extreme."""
    assert paired_test([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)
    assert paired_test([0.0, 0.0, 0.0]) == 1.0
    assert paired_test([1.0, -1.5, 2.0, -2.5, 0.5, -0.6]) > 0.5


def test_methods_are_compared_in_pairs_with_the_first() -> None:
    base = {str(i): 20.0 + i for i in range(6)}
    records = _records(base, method="lq") + _records(
        {name: value + 1 + int(name) / 10 for name, value in base.items()}, method="restored"
    )
    comparison = compare_methods(records)
    assert comparison.header[0] == "method"
    assert comparison.rows[1][0] == "restored" and "p=0.031" in comparison.rows[1][1]  # 2 / 64
    assert any("Wilcoxon" in note for note in comparison.notes)


def test_the_number_of_tests_counts_no_labels() -> None:
    """A label may hold `p=` itself; a row without an interval is no test."""
    values = {str(i): float(i) for i in range(6)}
    runs = {
        "max_step=1": _records(values),
        "max_step=2": _records({k: v + 1 for k, v in values.items()}),
    }
    notes = " ".join(compare_runs(runs).notes)
    assert "there being 1 of them" in notes
    few = {label: _records({"a": 1.0, "b": 2.0}) for label in runs}
    assert "bootstrap" not in " ".join(compare_runs(few).notes)
