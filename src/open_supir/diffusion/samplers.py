"""Samplers: plain functions that take a latent down a list of sigmas with a denoise function.

Sources: Karras et al. 2022 (arXiv:2206.00364) for Euler and Heun with churn; Lu et al. 2022
(arXiv:2211.01095) and its stochastic form for DPM-Solver++(2M); Luo et al. 2023 (arXiv:2310.04378)
for consistency models. B batch, h w latent size. Latents are float32 throughout.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MAX_GAMMA = math.sqrt(2) - 1  # Karras et al. 2022, Algorithm 2


@dataclass(frozen=True)
class Step:
    """One step of a sampler, in Python floats, so that nothing waits for a device."""

    index: int  # position in the list of sigmas
    sigma: float  # the schedule's noise level
    sigma_hat: float  # the noise level of the current x, raised by churn
    sigma_next: float  # the noise level at the end of the step


Denoise = Callable[[Tensor, Step], Tensor]  # (x (B, C, h, w), step) -> denoised, same shape
Randn = Callable[[Tensor], Tensor]  # (like) -> standard normal noise of its shape, device and dtype
# (step, x after the step, denoised); may raise to cancel
OnStep = Callable[[Step, Tensor, Tensor], None]


def sample_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    s_churn: float = 0.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    sigma_cap: float = math.inf,
    randn: Randn = torch.randn_like,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample by Euler steps with churn: Karras et al. 2022, Algorithm 2, without the correction.

    Args:
        x: (B, C, h, w) start, already scaled to noise level `sigmas[0]`.
        sigmas: Descending, usually ending in 0.
        s_churn: Total amount of noise added back over the run; 0 is deterministic.
        s_noise: Factor on the standard deviation of added noise.
        s_tmin, s_tmax: Range of sigma with churn.
        sigma_cap: Churn raises no sigma above this: networks are trained up to their table's top.
        randn: Source of the added noise; called only for steps that add noise.
    """
    for step in _churned(sigmas, s_churn, s_tmin, s_tmax, sigma_cap):
        x = _churn(x, step, s_noise, randn)
        denoised = denoise(x, step)
        x = x + (x - denoised) * ((step.sigma_next - step.sigma_hat) / step.sigma_hat)
        if on_step is not None:
            on_step(step, x, denoised)
    return x


def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    s_churn: float = 0.0,
    s_noise: float = 1.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    sigma_cap: float = math.inf,
    randn: Randn = torch.randn_like,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample by Heun steps with churn (Karras et al. 2022, Algorithm 2).

    Two estimates per step, but one for a step to 0. Arguments as in `sample_euler`.
    """
    for step in _churned(sigmas, s_churn, s_tmin, s_tmax, sigma_cap):
        x, sigma_next = _churn(x, step, s_noise, randn), step.sigma_next
        denoised = denoise(x, step)
        slope = (x - denoised) / step.sigma_hat
        x_next = x + slope * (sigma_next - step.sigma_hat)
        if sigma_next > 0:
            denoised = denoise(x_next, Step(step.index, sigma_next, sigma_next, sigma_next))
            slope = (slope + (x_next - denoised) / sigma_next) / 2
            x_next = x + slope * (sigma_next - step.sigma_hat)
        x = x_next
        if on_step is not None:
            on_step(step, x, denoised)
    return x


def sample_dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    randn: Randn = torch.randn_like,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample by DPM-Solver++(2M): second order from two successive estimates, one per step.

    Every step, including the first but not one to 0, adds back the noise that `eta` removes: 0
    follows the ODE, 1 the SDE. Other arguments as in `sample_euler`.
    """
    previous: Tensor | None = None
    previous_h = 0.0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        step = Step(index, sigma, sigma, sigma_next)
        denoised = denoise(x, step)
        if sigma_next == 0:
            x = denoised
        else:
            h = math.log(sigma / sigma_next)
            target = denoised
            if previous is not None:
                # 1 / (2 r), where r is the ratio of the previous step's h to this one's
                weight = h / (2 * previous_h)
                target = denoised + (denoised - previous) * weight
            keep = math.exp(-h * (1 + eta))
            x = keep * x + (1 - keep) * target
            if eta > 0:
                x = x + randn(x) * (sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise)
            previous, previous_h = denoised, h
        if on_step is not None:
            on_step(step, x, denoised)
    return x


def sample_lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    s_noise: float = 1.0,
    randn: Randn = torch.randn_like,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a consistency model: each estimate is final, and is noised afresh for the next step.

    Arguments as in `sample_euler`; noise is drawn after every step but one to 0.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        step = Step(index, sigma, sigma, sigma_next)
        denoised = x = denoise(x, step)
        if sigma_next > 0:
            x = denoised + randn(x) * (sigma_next * s_noise)
        if on_step is not None:
            on_step(step, x, denoised)
    return x


def _churned(
    sigmas: Sequence[float], s_churn: float, s_tmin: float, s_tmax: float, sigma_cap: float
) -> Iterator[Step]:
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        gamma = min(s_churn / (len(sigmas) - 1), MAX_GAMMA) if s_tmin <= sigma <= s_tmax else 0.0
        yield Step(index, sigma, max(min(sigma * (1 + gamma), sigma_cap), sigma), sigma_next)


def _churn(x: Tensor, step: Step, s_noise: float, randn: Randn) -> Tensor:
    if step.sigma_hat <= step.sigma:
        return x
    return x + randn(x) * (s_noise * math.sqrt(step.sigma_hat**2 - step.sigma**2))
