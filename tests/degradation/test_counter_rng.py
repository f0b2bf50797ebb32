"""Counter-based random numbers: known answers, distributions, independence."""

import pytest
import torch
from scipy import stats

from open_supir.degradation.counter_rng import (
    column_counters,
    derive,
    mix,
    normals,
    pixel_bits,
    poisson_counts,
    row_counters,
    uniforms,
)
from open_supir.degradation.draw import SLOTS


def bits_of(seed: int, height: int, width: int) -> torch.Tensor:
    keys = derive(torch.tensor([seed]), 1)
    rows, columns = torch.arange(height), torch.arange(width)
    return pixel_bits(row_counters(keys, rows), column_counters(columns))


def test_mix_gives_the_published_splitmix64_sequence() -> None:
    """First outputs of seed 1234567, as in the reference implementation (prng.di.unimi.it)."""
    golden = 0x9E3779B97F4A7C15 - (1 << 64)
    states = torch.tensor(1234567) + torch.arange(1, 4) * golden
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [x % (1 << 64) for x in mix(states).tolist()] == expected


def test_uniforms_are_uniform_in_every_slot_and_uncorrelated() -> None:
    table = uniforms(torch.arange(20_000), len(SLOTS))
    assert table.min() > 0 and table.max() < 1
    for column in table.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    correlation = torch.corrcoef(table.T) - torch.eye(len(SLOTS))
    assert correlation.abs().max() < 4 / 20_000**0.5


def test_uniforms_of_a_slot_do_not_depend_on_the_number_of_slots() -> None:
    seeds = torch.tensor([3, -7, 1 << 60])
    assert torch.equal(uniforms(seeds, 5), uniforms(seeds, 9)[:, :5])


def test_normals_follow_the_normal_distribution() -> None:
    values = normals(bits_of(5, 200, 200), 3)[0]
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(values.flatten(1)) - torch.eye(3)
    assert correlation.abs().max() < 4 / 200
    neighbours = torch.corrcoef(torch.stack([values[0, :, 1:], values[0, :, :-1]]).flatten(1))
    assert neighbours[0, 1].abs() < 4 / 200


@pytest.mark.parametrize(
    ("log2_levels", "level"), [(8, 1), (8, 5), (8, 40), (8, 255), (6, 1), (6, 30), (0, 128)]
)
def test_poisson_counts_follow_the_poisson_distribution(log2_levels: int, level: int) -> None:
    """Shape between the 2 % quantiles, mean and variance over all."""
    rate = level / 255 * 2**log2_levels
    plane = torch.full((1, 3, 300, 300), level)
    counts = poisson_counts(bits_of(1, 300, 300), plane, torch.tensor([log2_levels])).flatten()
    low, high = int(stats.poisson.ppf(0.02, rate)), int(stats.poisson.ppf(0.98, rate))
    observed = torch.bincount(counts.long().clamp(low, high) - low, minlength=high - low + 1)
    points = torch.arange(low, high + 1)
    expected = torch.from_numpy(stats.poisson.pmf(points.numpy(), rate))
    expected[0], expected[-1] = stats.poisson.cdf(low, rate), stats.poisson.sf(high - 1, rate)
    result = stats.chisquare(observed.numpy(), (expected / expected.sum() * len(counts)).numpy())
    assert result.pvalue > 1e-4
    assert abs(float(counts.mean()) - rate) < 4 * (rate / len(counts)) ** 0.5
    assert abs(float(counts.var()) / rate - 1) < 4 * ((2 + 1 / rate) / len(counts)) ** 0.5 + 1e-3


def test_poisson_counts_of_black_are_zero_and_grow_with_the_level() -> None:
    """Monotone in the level: a rounding difference of one level moves the count by about one."""
    bits = bits_of(2, 64, 64)
    counts = [
        poisson_counts(bits, torch.full((1, 1, 64, 64), level), torch.tensor([8]))
        for level in (0, 100, 101)
    ]
    assert counts[0].max() == 0
    step = counts[2] - counts[1]
    assert step.min() >= 0 and step.max() <= 2


def test_pixels_have_the_same_noise_in_images_of_any_size() -> None:
    assert torch.equal(bits_of(9, 20, 30)[:, :11, :7], bits_of(9, 11, 7))
