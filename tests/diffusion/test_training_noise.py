import math

import pytest
import torch

from open_supir.diffusion.schedule import sigma_table
from open_supir.diffusion.training_noise import (
    LogNormalNoise,
    TableNoise,
    seeded_noise,
    seeded_randn,
    seeded_uniform,
)

SEEDS = torch.arange(64, dtype=torch.int64) * 7919 - 100


def _splitmix64(state: int, count: int) -> list[int]:
    """The published generator in Python integers (Steele et al. 2014)."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_words_are_those_of_splitmix64() -> None:
    mask = (1 << 64) - 1
    for seed, stream in ((0, 0), (-5, 2), (2**63 - 1, 7)):
        first = _splitmix64(seed & mask, 1)[0]
        gamma = 0x9E3779B97F4A7C15
        key = _splitmix64(((first + (stream + 1) * 0xD1B54A32D192ED03) - gamma) & mask, 1)[0]
        expected = [(word >> 11) * 2.0**-53 for word in _splitmix64(key, 5)]
        got = seeded_uniform(torch.tensor([seed]), (1, 5), stream)
        assert got[0].tolist() == expected


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 4, 4), (1,)])
def test_noise_of_a_sample_does_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    batch = seeded_randn(SEEDS, (64, *shape), stream=3)
    for i in (0, 5, 63):
        assert torch.equal(batch[i], seeded_randn(SEEDS[i : i + 1], (1, *shape), stream=3)[0])


def test_noise_is_standard_normal() -> None:
    noise = seeded_randn(SEEDS, (64, 4, 32, 32)).double()  # 262144 numbers
    n = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(noise.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    share = (noise.abs() > 3).double().mean().item()
    assert share == pytest.approx(0.0026998, abs=4 * math.sqrt(0.0027 / n))


def test_seeds_streams_and_neighbours_are_uncorrelated() -> None:
    noise = seeded_randn(SEEDS, (64, 4096))
    other = seeded_randn(SEEDS, (64, 4096), stream=9)
    bound = 5 / math.sqrt(64 * 4096)
    assert (noise * other).mean().abs() < bound
    assert (noise[1:] * noise[:-1]).mean().abs() < bound
    assert (noise[:, 1:] * noise[:, :-1]).mean().abs() < bound
    assert (noise[:, ::2].abs() * noise[:, 1::2].abs()).mean().item() == pytest.approx(
        2 / math.pi, abs=4 * bound
    )


def test_no_generator_is_touched() -> None:
    before = torch.get_rng_state()
    seeded_randn(SEEDS, (64, 8))
    TableNoise().sample(SEEDS)
    assert torch.equal(before, torch.get_rng_state())


def test_uniform_lies_in_the_half_open_interval() -> None:
    u = seeded_uniform(SEEDS, (64, 4096))
    assert u.min() >= 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * u.numel()))


def test_table_noise_is_uniform_over_the_table() -> None:
    sigma = TableNoise().sample(torch.arange(20000))
    table = sigma_table()
    assert torch.isin(sigma, table).all()
    share = (sigma <= table[249]).double().mean().item()
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 20000))


def test_table_noise_keeps_to_its_index_range() -> None:
    sigma = TableNoise(index_range=(10, 12)).sample(torch.arange(2000))
    assert sorted(set(sigma.tolist())) == sigma_table()[10:13].tolist()


def test_power_below_one_favours_high_noise() -> None:
    seeds = torch.arange(4000)
    assert TableNoise(power=0.5).sample(seeds).mean() > TableNoise().sample(seeds).mean() * 1.3


def test_weighted_latent_error_equals_noise_prediction_error() -> None:
    sigma = TableNoise().sample(SEEDS)
    z, eps, guess = (seeded_randn(SEEDS, (64, 4, 3, 3), stream=s) for s in (20, 21, 22))
    s = sigma[:, None, None, None]
    denoised = (z + s * eps) - s * guess
    loss = TableNoise().weight(sigma) * (denoised - z).square().mean(dim=(1, 2, 3))
    # float32: at the lowest sigma the subtraction of z keeps about 5 digits
    torch.testing.assert_close(loss, (guess - eps).square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=0)


def test_lognormal_noise_has_the_stated_mean_and_deviation() -> None:
    log_sigma = LogNormalNoise(mean=-1.2, std=1.2).sample(torch.arange(20000)).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(20000))
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.03)


def test_edm_weight_is_the_papers() -> None:
    sigma = torch.tensor([0.1, 1.0, 20.0])
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    torch.testing.assert_close(LogNormalNoise().weight(sigma), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TableNoise(index_range=(5, 1000)),
        lambda: TableNoise(index_range=(5, 4)),
        lambda: TableNoise(power=0),
        lambda: TableNoise(prediction="x0"),  # type: ignore[arg-type]
        lambda: LogNormalNoise(std=0),
        lambda: LogNormalNoise(sigma_range=(0, 1)),
    ],
)
def test_impossible_options_are_refused(build) -> None:
    with pytest.raises(ValueError):
        build()


def test_offset_noise_moves_the_mean_of_each_channel_and_nothing_else() -> None:
    """Variance of a channel's mean is 1 / n of plain noise, and offset ** 2 more with it."""
    seeds, shape = torch.arange(500), (500, 4, 16, 16)
    plain, moved = (seeded_noise(seeds, shape, offset=o) for o in (0.0, 0.5))
    assert torch.equal(plain, seeded_randn(seeds, shape))
    difference = moved - plain
    assert torch.allclose(difference, difference[..., :1, :1].expand(shape), atol=1e-6)
    # 2000 draws: the standard error of a variance is sqrt(2 / 2000) of it, 3 %; four of them
    assert difference[..., 0, 0].var() == pytest.approx(0.25, rel=0.13)
