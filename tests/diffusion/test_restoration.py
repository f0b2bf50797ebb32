import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from open_supir.diffusion import Denoiser, SamplerSettings, restore_latent
from open_supir.diffusion.restoration import generate_latent, image_noise
from open_supir.diffusion.samplers import Step


class Cond(NamedTuple):
    context: Tensor
    vector: Tensor


def _cond(value: float, batch: int = 1) -> Cond:
    return Cond(torch.full((batch, 77, 8), value), torch.full((batch, 5), value))


def network(x, t, cond, z_lq, control_scale):
    """Predicts the noise that would leave control_scale * z_lq plus the condition's mean."""
    target = cond.vector.mean(dim=1)[:, None, None, None]
    if z_lq is not None:
        target = target + control_scale * z_lq.repeat(len(x) // len(z_lq), 1, 1, 1)
    return x - 0.05 * target


def _restore(settings: SamplerSettings, *, size=(12, 20), seeds=(5,), z_center=None) -> Tensor:
    batch = len(seeds)
    z_lq = torch.linspace(-1, 1, 4 * size[0] * size[1]).reshape(1, 4, *size).repeat(batch, 1, 1, 1)
    return restore_latent(
        network,
        Denoiser(),
        _cond(1.0, batch),
        _cond(0.5, batch),
        z_lq,
        z_center=z_center,
        settings=settings,
        randn=image_noise(seeds),
    )


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("grid", ["table", "karras", "exponential"])
def test_every_sampler_and_grid_gives_a_finite_latent(sampler: str, grid: str) -> None:
    settings = SamplerSettings(num_steps=6, sampler=sampler, grid=grid)  # type: ignore[arg-type]
    z = _restore(settings)
    assert z.shape == (1, 4, 12, 20) and z.dtype == torch.float32 and z.isfinite().all()


@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_sigma_min_is_the_lowest_level(grid: str) -> None:
    sigmas = SamplerSettings(num_steps=5, grid=grid, sigma_min=0.03).sigmas()  # type: ignore[arg-type]
    assert sigmas[-2:] == pytest.approx([0.03, 0.0])


def test_guidance_without_a_stop_and_without_decay_ends_at_the_center() -> None:
    center = torch.full((1, 4, 12, 20), 2.0)
    settings = SamplerSettings(num_steps=4, tau=0.0, tau_stop=None, s_churn=0.0)
    torch.testing.assert_close(_restore(settings, z_center=center), center)


@pytest.mark.parametrize("tile_batch", [1, 4])
def test_tiled_equals_untiled_for_a_pointwise_network(tile_batch: int) -> None:
    settings = SamplerSettings(num_steps=5, tau=4.0, center="lq")
    tiled = dataclasses.replace(settings, tile=8, tile_batch=tile_batch)
    expected = _restore(settings)
    torch.testing.assert_close(_restore(tiled), expected, atol=1e-5, rtol=1e-5)


def test_tile_larger_than_the_latent_changes_nothing() -> None:
    settings = SamplerSettings(num_steps=4)
    assert torch.equal(_restore(settings), _restore(dataclasses.replace(settings, tile=64)))


def test_sequential_guidance_equals_batched() -> None:
    settings = SamplerSettings(num_steps=4)
    other = dataclasses.replace(settings, sequential_cfg=True)
    torch.testing.assert_close(_restore(other), _restore(settings), atol=1e-6, rtol=1e-6)


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    """Tolerance: kernels may round differently by batch; the noise itself is equal."""
    settings = SamplerSettings(num_steps=4)
    both = _restore(settings, seeds=(5, 6))
    torch.testing.assert_close(both[:1], _restore(settings, seeds=(5,)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[1:], _restore(settings, seeds=(6,)), atol=1e-5, rtol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_restoration_guidance_at_full_strength_returns_the_center() -> None:
    """tau 0 replaces every estimate but the last; there the sampler is already at the centre."""
    center = torch.full((1, 4, 12, 20), 3.0)
    seen: list[Tensor] = []
    restore_latent(
        network,
        Denoiser(),
        _cond(0.0),
        _cond(0.0),
        torch.zeros(1, 4, 12, 20),
        z_center=center,
        settings=SamplerSettings(num_steps=4, tau=0.0),
        randn=image_noise([0]),
        on_step=lambda step, x, denoised: seen.append(denoised),
    )
    assert all(torch.equal(denoised, center) for denoised in seen[:-1])


def test_missing_center_is_refused() -> None:
    with pytest.raises(ValueError, match="z_center"):
        _restore(SamplerSettings(num_steps=2, tau=4.0))


def test_churn_stays_under_the_table_unless_told() -> None:
    tops = {}
    for beyond in (False, True):
        seen: list[Step] = []
        restore_latent(
            network,
            Denoiser(),
            _cond(0.0),
            _cond(0.0),
            torch.zeros(1, 4, 8, 8),
            settings=SamplerSettings(num_steps=50, churn_beyond_table=beyond),
            randn=image_noise([0]),
            on_step=lambda step, x, d, seen=seen: seen.append(step),
        )
        tops[beyond] = max(step.sigma_hat for step in seen)
    assert tops[False] == pytest.approx(14.6146, abs=1e-4)
    assert tops[True] == pytest.approx(14.6146 * 1.1, rel=1e-5)


def test_image_to_image_of_strength_zero_returns_the_latent() -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = SamplerSettings(num_steps=4)
    args = (network, Denoiser(), _cond(0.0), _cond(0.0), z)
    noise = image_noise([0])
    assert torch.equal(generate_latent(*args, strength=0.0, settings=settings, randn=noise), z)
    with pytest.raises(ValueError, match="strength"):
        generate_latent(*args, strength=1.5, settings=settings, randn=noise)


def test_image_to_image_takes_its_share_of_the_steps_from_the_noised_latent() -> None:
    z = torch.full((1, 4, 8, 8), 2.0)
    seen: list[Step] = []
    settings = SamplerSettings(num_steps=10, s_churn=0.0, cfg_scale=1.0)
    sigmas = settings.sigmas()
    first: list[Tensor] = []

    def spy(x, t, cond, z_lq, control_scale):
        assert z_lq is None
        first.append(x)
        return torch.zeros_like(x)

    generate_latent(
        spy,
        Denoiser(),
        _cond(0.0),
        None,
        z,
        strength=0.5,
        settings=settings,
        randn=torch.ones_like,
        on_step=lambda step, x, d: seen.append(step),
    )
    assert [step.sigma for step in seen] == sigmas[5:10]
    expected = (2.0 + sigmas[5]) / (1 + sigmas[5] ** 2) ** 0.5
    torch.testing.assert_close(first[0], torch.full_like(z, expected))


@pytest.mark.parametrize(
    "options",
    [
        dict(num_steps=0),
        dict(num_steps=1001),
        dict(sampler="ddim"),
        dict(grid="linear"),
        dict(center="hq"),
        dict(cfg_scale=-1.0),
        dict(cfg_scale_start=float("nan")),
        dict(tau=-1.0),
        dict(tau_stop=-1.0),
        dict(sigma_min=0.0),
        dict(sigma_min=20.0),
        dict(s_churn=-0.1),
        dict(tile=6),
        dict(tile=10),
        dict(overlap=1.0),
        dict(tile_batch=0),
        dict(cfg_interval=(2.0, 1.0)),
        dict(num_steps=2.5),
        dict(tau="strong"),
    ],
)
def test_impossible_settings_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplerSettings(**options)
