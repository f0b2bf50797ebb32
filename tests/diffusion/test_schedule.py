import math

import pytest
import torch

from open_supir.diffusion.schedule import (
    SIGMA_MAX,
    exponential_sigmas,
    fractional_index,
    index_to_sigma,
    karras_sigmas,
    lcm_sigmas,
    nearest_index,
    sigma_table,
    table_on,
    table_sigmas,
)


def test_table_has_the_published_ends_and_ascends() -> None:
    table = sigma_table()
    assert table.shape == (1000,) and table.dtype == torch.float32
    assert table[0].item() == pytest.approx(0.0291672, abs=1e-7)
    assert table[-1].item() == pytest.approx(14.6146412, abs=1e-6)
    assert (table.diff() > 0).all()


def test_table_sigmas_of_50_steps_are_the_published_ones() -> None:
    sigmas = table_sigmas(50)
    assert len(sigmas) == 51
    assert sigmas[:4] == pytest.approx([14.6146, 12.9663, 11.5428, 10.3094], abs=5e-5)
    assert sigmas[-4:] == pytest.approx([0.2482, 0.1963, 0.1345, 0.0], abs=5e-5)


def test_table_sigmas_of_1000_steps_are_the_whole_table() -> None:
    assert table_sigmas(1000) == [*sigma_table().flip(0).tolist(), 0.0]


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_table_sigmas_refuses_impossible_counts(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        table_sigmas(num_steps)


@pytest.mark.parametrize("grid", [table_sigmas, karras_sigmas, exponential_sigmas])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_every_grid_falls_from_the_top_to_zero(grid, num_steps: int) -> None:
    sigmas = grid(num_steps)
    assert len(sigmas) == num_steps + 1
    assert sigmas[0] == pytest.approx(SIGMA_MAX, rel=1e-5) and sigmas[-1] == 0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


def test_karras_sigmas_are_even_in_the_seventh_root() -> None:
    roots = [s ** (1 / 7) for s in karras_sigmas(9, sigma_min=0.1)[:-1]]
    steps = [a - b for a, b in zip(roots, roots[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 8)
    assert karras_sigmas(9, sigma_min=0.1)[-2] == pytest.approx(0.1)


def test_karras_sigmas_end_where_the_table_grid_ends() -> None:
    assert karras_sigmas(8)[-2] == pytest.approx(table_sigmas(8)[-2])


def test_grids_refuse_a_sigma_min_above_sigma_max() -> None:
    with pytest.raises(ValueError, match="sigma_min"):
        karras_sigmas(4, sigma_min=20.0)


def test_sigma_to_index_to_sigma_returns() -> None:
    index = torch.arange(1000)
    sigma = index_to_sigma(index)
    assert torch.equal(nearest_index(sigma), index)
    torch.testing.assert_close(fractional_index(sigma), index.float(), atol=2e-3, rtol=0)


def test_index_is_clamped_beyond_the_table() -> None:
    sigma = torch.tensor([1e-6, 99.0])
    assert nearest_index(sigma).tolist() == [0, 999]
    assert fractional_index(sigma).tolist() == [0, 999]


def test_fractional_index_is_linear_in_log_sigma() -> None:
    table = sigma_table()
    middle = (table[499] * table[500]).sqrt()[None]
    assert fractional_index(middle).item() == pytest.approx(499.5, abs=2e-3)


def test_cached_table_can_be_trained_with_after_inference_mode() -> None:
    table_on.cache_clear()
    with torch.inference_mode():
        nearest_index(torch.tensor([1.0]))
    weight = torch.ones(1, requires_grad=True)
    (weight * table_on(torch.device("cpu"))[:1]).sum().backward()
    assert weight.grad is not None and math.isclose(weight.grad.item(), 0.0291672, abs_tol=1e-6)


def test_lcm_sigmas_are_at_the_indices_of_the_published_scheduler() -> None:
    """diffusers' LCMScheduler gives [999, 759, 499, 259] for 4 steps of 50."""
    table = sigma_table().tolist()
    assert lcm_sigmas(4) == [table[index] for index in (999, 759, 499, 259)] + [0.0]
    assert lcm_sigmas(50)[-2] == table[19]
    with pytest.raises(ValueError, match=r"num_steps must be in 1\.\.50"):
        lcm_sigmas(51)
