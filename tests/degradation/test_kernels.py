"""The kernel bank against scipy's formulas, and what every kernel must satisfy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import j1

from open_supir.degradation.config import MAX_KERNEL
from open_supir.degradation.kernels import KINDS, make_kernels


def one(kind: str, side: int = 21, **changes: float) -> torch.Tensor:
    """Return (K, K); sigma 2 and 1.2, no rotation, beta 1, cutoff 2 unless said."""
    values = {"sigma_x": 2.0, "sigma_y": 1.2, "theta": 0.0, "beta": 1.0, "cutoff": 2.0} | changes
    tensors = {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
    return make_kernels(torch.tensor([KINDS.index(kind)]), torch.tensor([side]), **tensors)[0]


def expected(kind: str, side: int, sx: float, sy: float, theta: float, beta: float, wc: float):
    radius = MAX_KERNEL // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    inverse = np.linalg.inv(rotation @ np.diag([sx**2, sy**2]) @ rotation.T)
    grid = np.stack([x, y], -1)
    q = np.einsum("yxi,ij,yxj->yx", grid, inverse, grid)
    if kind == "sinc":
        r = np.hypot(x, y)
        with np.errstate(invalid="ignore"):
            kernel = wc * j1(wc * r) / (2 * np.pi * r)
        kernel[radius, radius] = wc**2 / (4 * np.pi)
    elif kind.startswith("plateau"):
        kernel = 1 / (1 + q**beta)
    else:
        kernel = np.exp(-0.5 * q**beta)
    kernel[(np.abs(x) > side // 2) | (np.abs(y) > side // 2)] = 0
    return kernel / kernel.sum()


@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("side", [7, 13, 21])
def test_kernels_equal_scipys_formula(kind: str, side: int) -> None:
    """1e-6: torch's float64 Bessel function is off by 5e-7."""
    drawn = {"sigma_x": 1.7, "sigma_y": 0.6, "theta": 0.7, "beta": 1.4, "cutoff": 1.3}
    if kind in ("iso", "aniso"):
        drawn["beta"] = 1.0
    numbers = (drawn["sigma_x"], drawn["sigma_y"], drawn["theta"], drawn["beta"], drawn["cutoff"])
    difference = one(kind, side, **drawn).numpy() - expected(kind, side, *numbers)
    assert np.abs(difference).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [7, 9, 21])
def test_kernels_sum_to_one_are_symmetric_and_stay_in_their_window(kind: str, side: int) -> None:
    kernel = one(kind, side, theta=0.4)
    assert abs(float(kernel.sum()) - 1) < 1e-5
    assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-7)
    margin = (MAX_KERNEL - side) // 2
    inside = torch.zeros_like(kernel)
    inside[margin : MAX_KERNEL - margin, margin : MAX_KERNEL - margin] = 1
    assert (kernel * (1 - inside)).abs().max() == 0
    if kind != "sinc":
        assert kernel.min() >= 0


def test_isotropic_kernels_equal_their_transpose() -> None:
    kernel = one("iso", sigma_x=1.5, sigma_y=1.5)
    assert torch.allclose(kernel, kernel.T, atol=1e-7)


def test_half_a_turn_changes_nothing() -> None:
    assert torch.allclose(one("aniso", theta=0.3), one("aniso", theta=0.3 + math.pi), atol=1e-7)


def test_generalised_kernel_of_beta_one_is_gaussian() -> None:
    assert torch.equal(one("generalized_aniso", beta=1.0), one("aniso"))


def test_tiny_sigma_gives_a_delta() -> None:
    assert torch.allclose(one("iso", sigma_x=0.01, sigma_y=0.01), one("none"), atol=1e-7)


def test_a_kernel_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    count = 37
    kind, side = torch.arange(count) % len(KINDS), 7 + 2 * (torch.arange(count) % 8)
    numbers = [torch.rand(count, dtype=torch.float64) + 0.4 for _ in range(5)]
    together = make_kernels(kind, side, *numbers)
    for i in range(count):
        one_slice = slice(i, i + 1)
        alone = make_kernels(kind[one_slice], side[one_slice], *(x[one_slice] for x in numbers))
        assert (alone[0] - together[i]).abs().max() < 1e-7  # not all machines round alike
