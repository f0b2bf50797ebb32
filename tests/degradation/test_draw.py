"""The draw: distributions against the ranges, independence, repeatability."""

import dataclasses
import json
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from open_supir.degradation import DegradationParams, DegradationPipeline, StageConfig
from open_supir.degradation.config import FAMILIES, MODES
from open_supir.degradation.draw import SLOTS
from open_supir.degradation.kernels import KINDS, NONE, SINC

from .samples import PRESETS, config, preset

COUNT = 20_000


@pytest.fixture(scope="module")
def drawn() -> DegradationParams:
    return preset("supir_q").draw(torch.arange(COUNT), size=(512, 384))


def assert_shares(values: Tensor, probabilities: dict[int, float]) -> None:
    observed = [int((values == value).sum()) for value in probabilities]
    assert sum(observed) == len(values)
    expected = [p * len(values) / sum(probabilities.values()) for p in probabilities.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert values.min() >= low and values.max() <= high
    scaled = (values - low) / (high - low)
    assert stats.kstest(scaled.double().numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("stage", "blur"), [("first", 1.0), ("second", 0.8)])
def test_kernel_kinds_and_sides_follow_the_config(
    drawn: DegradationParams, stage: str, blur: float
) -> None:
    kernel = getattr(drawn, stage).kernel
    families = config("supir_q").first.blur.families
    shares = {KINDS.index(f): blur * 0.9 * p for f, p in zip(FAMILIES, families, strict=True)}
    shares |= {SINC: blur * 0.1} | ({NONE: 1 - blur} if blur < 1 else {})
    assert_shares(kernel.kind, shares)
    assert_shares(kernel.side, dict.fromkeys(range(7, 22, 2), 1.0))


def test_sigma_theta_and_cutoff_are_uniform_within_their_branch(drawn: DegradationParams) -> None:
    for stage, high in ((drawn.first, 3.0), (drawn.second, 1.5)):
        kernel = stage.kernel
        rotated = (kernel.kind == 1) | (kernel.kind == 3) | (kernel.kind == 5)
        assert_uniform(kernel.sigma_x, 0.2, high)
        assert_uniform(kernel.sigma_y[rotated], 0.2, high)
        assert torch.equal(kernel.sigma_y[~rotated], kernel.sigma_x[~rotated])
        assert_uniform(kernel.theta[rotated], -math.pi, math.pi)
        small = kernel.side < 13
        assert_uniform(kernel.cutoff[small], math.pi / 3, math.pi)
        assert_uniform(kernel.cutoff[~small], math.pi / 5, math.pi)


def test_final_order_reaches_only_what_its_probability_allows() -> None:
    full = config("supir_q")
    for probability in (0.0, 1.0):
        ranges = dataclasses.replace(full, order_prob=probability)
        last = DegradationPipeline(ranges).draw(torch.arange(200), size=(64, 64)).jpeg_last
        assert (last == bool(probability)).all()


def test_beta_is_below_and_above_one_half_the_time_each(drawn: DegradationParams) -> None:
    kernel = drawn.first.kernel
    general, plateau = kernel.beta[kernel.kind == 2], kernel.beta[kernel.kind == 4]
    assert_uniform(general[general < 1], 0.5, 1)
    assert_uniform(general[general >= 1], 1, 4)
    assert abs(float((general < 1).double().mean()) - 0.5) < 4 * 0.5 / len(general) ** 0.5
    assert abs(float((plateau == 1).double().mean()) - 0.5) < 4 * 0.5 / len(plateau) ** 0.5
    assert_uniform(plateau[plateau > 1], 1, 2)


@pytest.mark.parametrize(
    ("stage", "probabilities", "up", "down"),
    [("first", (0.2, 0.7, 0.1), 1.5, 0.15), ("second", (0.3, 0.4, 0.3), 1.2, 0.3)],
)
def test_scales_and_sizes_follow_the_config(
    drawn: DegradationParams, stage: str, probabilities: tuple, up: float, down: float
) -> None:
    p = getattr(drawn, stage)
    direction = torch.where(p.scale > 1, 0, torch.where(p.scale < 1, 1, 2))
    assert_shares(direction, dict(enumerate(probabilities)))
    assert_uniform(p.scale[direction == 0], 1, up)
    assert_uniform(p.scale[direction == 1], down, 1)
    assert_shares(p.mode, dict.fromkeys(range(3), 1.0))
    base = (512, 384) if stage == "first" else (128, 96)  # the second is relative to the final LQ
    assert torch.equal(p.height, (base[0] * p.scale).floor().long())
    assert torch.equal(p.width, (base[1] * p.scale).floor().long())


def test_noise_jpeg_order_and_final_filter_follow_the_config(drawn: DegradationParams) -> None:
    ranges = (((1, 30), (0.05, 3)), ((1, 25), (0.05, 2.5)))
    for p, (gaussian, poisson) in zip((drawn.first, drawn.second), ranges, strict=True):
        assert_shares(p.noise, {1: 0.5, 2: 0.5})
        assert_shares(p.gray, {False: 0.6, True: 0.4})
        assert_uniform(p.strength[p.noise == 1], *gaussian)
        assert_uniform(p.strength[p.noise == 2], *poisson)
        assert_uniform(p.quality, 30, 95)
    assert_shares(drawn.jpeg_last, {False: 0.5, True: 0.5})
    assert_shares(drawn.mode, dict.fromkeys(range(3), 1.0))
    assert_shares(drawn.sinc.kind, {SINC: 0.8, NONE: 0.2})
    assert_uniform(drawn.sinc.cutoff, math.pi / 3, math.pi)
    assert_shares(drawn.sinc.side, dict.fromkeys(range(7, 22, 2), 1.0))
    assert (drawn.height == 128).all() and (drawn.width == 96).all()


def test_quantities_are_independent_of_each_other(drawn: DegradationParams) -> None:
    stages = (drawn.first, drawn.second)
    columns = [
        value.double()
        for p in stages
        for value in (p.kernel.sigma_x, p.kernel.side, p.scale, p.mode, p.noise, p.gray, p.quality)
    ] + [drawn.sinc.cutoff, drawn.mode.double(), drawn.jpeg_last.double()]
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert correlation.abs().max() < 4 / COUNT**0.5


def test_a_branch_does_not_shift_other_quantities() -> None:
    """Blur off, everything else stays as drawn: each quantity has a slot of its own."""
    full = config("supir_q")
    blur = dataclasses.replace(full.first.blur, prob=0.0)
    without = dataclasses.replace(full, first=dataclasses.replace(full.first, blur=blur))
    seeds = torch.arange(50)
    a = DegradationPipeline(full).draw(seeds, size=(64, 64))
    b = DegradationPipeline(without).draw(seeds, size=(64, 64))
    assert (b.first.kernel.kind == NONE).all()
    assert torch.equal(a.first.quality, b.first.quality) and torch.equal(a.mode, b.mode)
    assert torch.equal(a.second.scale, b.second.scale)


def test_slots_keep_their_places() -> None:
    """New slots go to the end: moving one would change every dataset that a seed names."""
    assert SLOTS[:3] == ("first.stage", "first.blur", "first.sinc")
    assert SLOTS.index("second.stage") == 20 and SLOTS.index("final.sinc") == 40
    assert len(SLOTS) == len(set(SLOTS)) >= 47
    params = preset("supir_q").draw(torch.tensor([0]), size=(64, 64))
    assert params.first.kernel.side.tolist() == [15]
    assert abs(float(params.first.quality) - 67.65235073582622) < 1e-9


def test_draw_of_a_seed_does_not_depend_on_its_batch() -> None:
    pipeline, seeds = preset("supir_q"), torch.tensor([5, -3, 1 << 62, 0])
    together = pipeline.draw(seeds, size=(100, 64)).rows()
    alone = [pipeline.draw(seeds[i : i + 1], size=(100, 64)).rows()[0] for i in range(4)]
    assert together == alone
    assert len({json.dumps(row) for row in together}) == 4


@pytest.mark.parametrize("name", PRESETS)
def test_rows_survive_json_exactly(name: str) -> None:
    params = preset(name).draw(torch.arange(6), size=(70, 64))
    again = DegradationParams.from_rows(json.loads(json.dumps(params.rows())))
    assert again.rows() == params.rows()
    for a, b in zip(params.tensors(), again.tensors(), strict=True):
        assert torch.equal(a, b)


def test_summaries_name_what_happens_to_a_sample() -> None:
    lines = preset("blur2_x4_noise20_jpeg50").draw(torch.arange(2), size=(64, 64)).summaries()
    for word in ("iso 21 s2.0", "bicubic 16x16", "gaussian 20", "jpeg 50"):
        assert word in lines[0]


def test_summaries_say_whether_jpeg_comes_last() -> None:
    """Every number that a line names stands where it is applied."""
    full = config("supir_q")
    for order, last in ((0.0, "sinc"), (1.0, "jpeg")):
        ranges = dataclasses.replace(full, order_prob=order, sinc_prob=1.0)
        params = DegradationPipeline(ranges).draw(torch.arange(4), size=(64, 64))
        for line in params.summaries():
            assert line.split("|")[2].split()[-2] == last
    unchanged = dataclasses.replace(full, identity_prob=1.0)
    assert DegradationPipeline(unchanged).draw(torch.arange(1), size=(8, 8)).summaries() == [
        "identity"
    ]


def test_numbers_are_those_of_samples_that_they_touch(drawn: DegradationParams) -> None:
    numbers = drawn.numbers()
    assert len(numbers["first.gaussian"]) + len(numbers["first.poisson"]) == COUNT
    assert len(numbers["first.side"]) == COUNT > len(numbers["second.side"])
    assert numbers["second.poisson"].max() <= 2.5 < numbers["second.gaussian"].max()
    assert abs(len(numbers["first.cutoff"]) / COUNT - 0.1) < 0.01
    assert all(values.ndim == 1 for values in numbers.values())


def test_shares_sum_to_one_and_follow_the_config(drawn: DegradationParams) -> None:
    shares = drawn.shares()
    for share in shares.values():
        assert abs(sum(share.values()) - 1) < 1e-9
    assert abs(shares["second.kernel"]["none"] - 0.2) < 0.02
    assert abs(shares["first.kernel"]["iso"] - 0.9 * 0.45) < 0.02
    assert set(shares["first.noise"]) == {"gaussian", "poisson"}  # what never occurs is left out


def test_left_out_second_stage_keeps_only_its_jpeg() -> None:
    params = preset("second_stage_half").draw(torch.arange(2000), size=(128, 128))
    skipped = (params.second.noise == 0).double().mean()
    assert abs(float(skipped) - 0.5) < 0.05
    out = params.second.noise == 0
    assert (params.second.kernel.kind[out] == NONE).all()
    assert torch.equal(params.second.height[out], params.first.height[out])
    assert (params.second.quality > 0).all()


def test_sizes_never_fall_below_the_smallest_side() -> None:
    ranges = dataclasses.replace(config("supir_q"), min_side=5)
    params = DegradationPipeline(ranges).draw(torch.arange(500), size=(9, 20))
    for p in (params.first, params.second, params):
        assert p.height.min() >= 5 and p.width.min() >= 5


def test_default_stage_does_nothing() -> None:
    params = DegradationPipeline(
        dataclasses.replace(config("x4"), first=StageConfig(), second=StageConfig())
    ).draw(torch.arange(100), size=(32, 32))
    assert (params.first.height == 32).all() and (params.first.noise == 0).all()
    assert (params.first.quality == 0).all() and (params.first.kernel.kind == NONE).all()
    assert set(params.first.mode.tolist()) <= set(range(len(MODES)))
