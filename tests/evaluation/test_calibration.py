"""Error by decile of a map, and rank correlation."""

import pytest
import torch

from open_supir.evaluation.calibration import deciles, error_levels, rank_correlation


def test_deciles_of_a_map_that_is_the_error() -> None:
    """0..99 over two pictures: tenth k holds 10 k .. 10 k + 9, whatever the order of pixels."""
    values = torch.arange(100.0)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    pictures = [values[:60].view(6, 10), values[60:].view(4, 10)]
    for k, decile in enumerate(deciles(pictures, pictures)):
        square = sum((10 * k + i) ** 2 for i in range(10)) / 10
        assert (decile.upto, decile.mean) == (10 * k + 9, 10 * k + 4.5)
        assert decile.error == pytest.approx(square**0.5)


def test_rank_correlation_over_two_pictures() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)): ten ranks whose neighbours are swapped give 1 - 60 / 990."""
    levels = torch.arange(10.0).square()
    errors = levels.view(5, 2).flip(1).flatten().sqrt()
    pictures = [[values[:4].view(2, 2), values[4:].view(3, 2)] for values in (levels, errors)]
    assert rank_correlation(*pictures) == pytest.approx(1 - 60 / 990)


def test_error_is_the_root_mean_square_of_channels_in_levels() -> None:
    image = torch.tensor([0.0, 3 / 255, 6 / 255]).view(3, 1, 1)
    assert float(error_levels(image, torch.zeros(3, 1, 1))) == pytest.approx(15**0.5)


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        deciles([torch.zeros(4, 5)], [torch.zeros(5, 4)])
