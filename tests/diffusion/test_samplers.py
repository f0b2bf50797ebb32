"""The best denoiser of a Gaussian is linear, and every step on it has a closed form."""

import math

import pytest
import torch
from torch import Tensor

from open_supir.diffusion.samplers import (
    Step,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sample_lcm,
)
from open_supir.diffusion.schedule import exponential_sigmas, karras_sigmas, table_sigmas

MEAN, STD = 1.5, 0.6
ALL = [sample_euler, sample_heun, sample_dpmpp_2m, sample_lcm]


def gaussian(x: Tensor, step: Step) -> Tensor:
    """The best estimate of z ~ N(MEAN, STD^2) from x = z + sigma_hat * noise."""
    shrink = STD**2 / (STD**2 + step.sigma_hat**2)
    return MEAN + shrink * (x - MEAN)


def _exact_ode(x: Tensor, start: float, end: float) -> Tensor:
    """The flow scales a Gaussian's deviation and keeps its mean."""
    ratio = math.sqrt((STD**2 + end**2) / (STD**2 + start**2))
    return MEAN + (x - MEAN) * ratio


def _start(count: int = 1, sigma: float = 14.6146) -> Tensor:
    noise = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return MEAN + noise * math.sqrt(STD**2 + sigma**2)


@pytest.mark.parametrize(
    "sample, order",
    [(sample_euler, 1), (sample_heun, 2), (lambda *a: sample_dpmpp_2m(*a, eta=0.0), 2)],
)
def test_error_falls_with_the_order_of_the_sampler(sample, order: int) -> None:
    x = _start(8)

    def error(num_steps: int) -> float:
        sigmas = exponential_sigmas(num_steps, sigma_min=0.1)[:-1]
        return (sample(gaussian, x, sigmas) - _exact_ode(x, sigmas[0], 0.1)).abs().max().item()

    assert error(100) / error(200) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("sample", ALL)
def test_last_step_to_zero_returns_the_estimate(sample) -> None:
    x = _start()
    out = sample(gaussian, x, [2.0, 0.0])
    torch.testing.assert_close(out, gaussian(x, Step(0, 2.0, 2.0, 0.0)))


def test_euler_step_equals_the_formula() -> None:
    x = torch.tensor([3.0], dtype=torch.float64)
    out = sample_euler(lambda x, step: x * 0.25, x, [2.0, 1.0])
    assert out.item() == pytest.approx(3.0 + (3.0 - 0.75) / 2.0 * (1.0 - 2.0))


def test_churn_raises_sigma_by_gamma_and_adds_the_missing_noise() -> None:
    steps: list[Step] = []

    def denoise(x: Tensor, step: Step) -> Tensor:
        steps.append(step)
        return x

    x = torch.zeros(1)
    out = sample_euler(
        denoise, x, [2.0, 1.0], s_churn=0.3, s_noise=1.5, randn=lambda like: torch.ones_like(like)
    )
    assert steps == [Step(0, 2.0, pytest.approx(2.6), 1.0)]
    assert out.item() == pytest.approx(1.5 * math.sqrt(2.6**2 - 2.0**2))


def test_gamma_is_limited_to_sqrt_two_minus_one() -> None:
    seen: list[Step] = []
    sample_euler(lambda x, s: seen.append(s) or x, torch.zeros(1), [2.0, 1.0], s_churn=99.0)
    assert seen[0].sigma_hat == pytest.approx(2.0 * math.sqrt(2))


def test_churn_keeps_to_its_interval_and_under_its_cap() -> None:
    seen: list[Step] = []
    sample_euler(
        lambda x, s: seen.append(s) or x,
        torch.zeros(1),
        [8.0, 4.0, 2.0, 0.0],
        s_churn=0.6,
        s_tmin=3.0,
        sigma_cap=8.5,
    )
    assert [s.sigma_hat for s in seen] == pytest.approx([8.5, 4.8, 2.0])


@pytest.mark.parametrize(
    "sample, options", [(sample_heun, dict(s_churn=40.0)), (sample_dpmpp_2m, dict(eta=1.0))]
)
def test_stochastic_sampling_ends_in_the_right_distribution(sample, options: dict) -> None:
    """Of second-order samplers, whose own error in 300 steps is below 2 %."""
    count = 40000
    generator = torch.Generator().manual_seed(3)
    out = sample(
        gaussian,
        _start(count),
        karras_sigmas(300, sigma_min=0.02),
        randn=lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype),
        **options,
    )
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * STD / math.sqrt(count))
    assert out.std().item() == pytest.approx(STD, rel=0.025)


def test_dpmpp_adds_noise_from_its_first_step_on_and_none_at_its_last() -> None:
    calls = 0

    def randn(like: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(like)

    sample_dpmpp_2m(gaussian, _start(), table_sigmas(5), eta=1.0, randn=randn)
    assert calls == 4


def test_dpmpp_first_step_keeps_the_marginal_deviation() -> None:
    """A perfect estimate of z = 0: after a step to sigma' the deviation must be sigma'."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100000, generator=generator) * 10
    out = sample_dpmpp_2m(
        lambda x, s: torch.zeros_like(x),
        x,
        [10.0, 6.0],
        eta=1.0,
        randn=lambda like: torch.randn(like.shape, generator=generator),
    )
    assert out.std().item() == pytest.approx(6.0, rel=0.02)


@pytest.mark.parametrize("sample", ALL)
def test_on_step_sees_every_step_and_can_cancel(sample) -> None:
    seen: list[int] = []

    def on_step(step: Step, x: Tensor, denoised: Tensor) -> None:
        seen.append(step.index)
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(gaussian, _start(), table_sigmas(6), on_step=on_step)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("sample", ALL)
def test_start_is_not_written_to(sample) -> None:
    x = _start(4)
    before = x.clone()
    sample(gaussian, x, table_sigmas(4))
    assert torch.equal(x, before)


def test_heun_evaluates_the_correction_at_the_next_sigma() -> None:
    seen: list[Step] = []
    sample_heun(lambda x, s: seen.append(s) or x, torch.zeros(1), [4.0, 2.0, 0.0])
    assert [(s.index, s.sigma_hat, s.sigma_next) for s in seen] == [
        (0, 4.0, 2.0),
        (0, 2.0, 2.0),
        (1, 2.0, 0.0),
    ]


def test_lcm_noises_each_estimate_afresh() -> None:
    """arXiv:2310.04378, Algorithm 3: the next x is the estimate plus noise of sigma_next."""
    seen: list[float] = []
    out = sample_lcm(
        lambda x, s: seen.append(x.item()) or x / 2,
        torch.tensor([8.0]),
        [4.0, 2.0, 0.0],
        randn=torch.ones_like,
    )
    assert seen == [8.0, 4.0 + 2.0] and out.item() == 3.0
