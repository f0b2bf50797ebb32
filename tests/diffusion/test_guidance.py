from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from open_supir.diffusion import Denoiser, restoration_guidance
from open_supir.diffusion.guidance import IntervalScale, LinearScale, controlled_denoise
from open_supir.diffusion.samplers import Step
from open_supir.diffusion.schedule import table_sigmas
from open_supir.diffusion.tiling import Window


class Cond(NamedTuple):
    context: Tensor
    vector: Tensor


class Recorder:
    """A denoiser that returns the mean of each sample's vector, and remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, network, x, sigma, cond, z_lq, control_scale=1.0):
        self.calls.append(dict(x=x, sigma=sigma, cond=cond, z_lq=z_lq, control_scale=control_scale))
        base = torch.zeros_like(x) if z_lq is None else z_lq.repeat(len(x) // len(z_lq), 1, 1, 1)
        return base + cond.vector.mean(dim=1)[:, None, None, None]


def _cond(value: float, batch: int = 2) -> Cond:
    return Cond(torch.full((batch, 3, 4), value), torch.full((batch, 5), value))


STEP = Step(index=0, sigma=4.0, sigma_hat=5.0, sigma_next=3.0)
X = torch.zeros(2, 4, 6, 8)


def test_linear_scale_goes_from_start_to_end() -> None:
    scale = LinearScale(7.5, 4.0, sigma_max=10.0)
    assert [scale(s) for s in (10.0, 5.0, 0.0)] == pytest.approx([7.5, 5.75, 4.0])


def test_interval_scale_is_one_outside() -> None:
    scale = IntervalScale(LinearScale(3.0, 3.0), 1.0, 2.0)
    assert [scale(s) for s in (0.5, 1.5, 2.5)] == [1.0, 3.0, 1.0]


@pytest.mark.parametrize("sequential", [False, True])
def test_guidance_extrapolates_from_uncond(sequential: bool) -> None:
    recorder = Recorder()
    denoise = controlled_denoise(
        recorder,
        None,
        _cond(2.0),
        _cond(1.0),
        None,
        cfg=3.0,
        sequential=sequential,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(denoise(X, STEP), torch.full_like(X, 1.0 + 3.0 * (2.0 - 1.0)))
    assert len(recorder.calls) == (2 if sequential else 1)


def test_uncond_comes_first_in_one_batch_of_two_halves() -> None:
    recorder = Recorder()
    z_lq = torch.arange(2.0)[:, None, None, None].expand(2, 4, 6, 8)
    controlled_denoise(recorder, None, _cond(2.0), _cond(1.0), z_lq, cfg=3.0)(X, STEP)  # type: ignore[arg-type]
    (call,) = recorder.calls
    assert type(call["cond"]) is Cond
    assert call["cond"].context[:, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert call["z_lq"][:, 0, 0, 0].tolist() == [0.0, 1.0]  # once for both halves


def test_strength_one_leaves_the_uncond_half_out() -> None:
    recorder = Recorder()
    denoise = controlled_denoise(recorder, None, _cond(2.0), None, None, cfg=1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(denoise(X, STEP), torch.full_like(X, 2.0))
    assert len(recorder.calls[0]["x"]) == 2


def test_linear_guidance_from_one_skips_the_uncond_half_at_the_top() -> None:
    recorder = Recorder()
    cfg = LinearScale(1.0, 4.0)
    denoise = controlled_denoise(recorder, None, _cond(2.0), _cond(1.0), None, cfg=cfg)  # type: ignore[arg-type]
    sigmas = table_sigmas(50)
    for index in (0, 1):
        denoise(X, Step(index, sigmas[index], sigmas[index], sigmas[index + 1]))
    assert [len(call["x"]) for call in recorder.calls] == [2, 4]


def test_guidance_without_uncond_is_refused() -> None:
    denoise = controlled_denoise(Recorder(), None, _cond(2.0), None, None, cfg=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uncond"):
        denoise(X, STEP)


def test_guidance_scale_is_taken_at_sigma_hat_and_control_scale_at_sigma() -> None:
    recorder = Recorder()
    denoise = controlled_denoise(
        recorder,
        None,  # type: ignore[arg-type]
        _cond(1.0),
        _cond(0.0),
        None,
        cfg=lambda sigma: 10 * sigma,
        control=lambda sigma: sigma,
    )
    assert denoise(X, STEP)[0, 0, 0, 0].item() == pytest.approx(50.0)
    assert recorder.calls[0]["control_scale"] == 4.0
    assert recorder.calls[0]["sigma"].tolist() == [5.0] * 4


def test_windows_crop_the_latent_and_repeat_the_condition_sample_by_sample() -> None:
    recorder = Recorder()
    z_lq = torch.arange(2 * 6 * 8.0).reshape(2, 1, 6, 8)
    windows = [Window(0, 4, 0, 4), Window(2, 6, 4, 8)]
    cond = Cond(torch.zeros(2, 3, 4), torch.tensor([[1.0], [2.0]]))
    denoise = controlled_denoise(recorder, None, cond, None, z_lq)  # type: ignore[arg-type]
    out = denoise(torch.zeros(4, 1, 4, 4), STEP, windows)
    crops = torch.cat([z_lq[..., 0:4, 0:4], z_lq[..., 2:6, 4:8]])
    torch.testing.assert_close(out, crops + torch.tensor([1.0, 2.0, 1.0, 2.0])[:, None, None, None])


def test_nothing_passed_in_is_written_to() -> None:
    cond, uncond, z_lq = _cond(2.0), _cond(1.0), torch.ones(2, 4, 6, 8)
    denoise = controlled_denoise(Recorder(), None, cond, uncond, z_lq, cfg=3.0)  # type: ignore[arg-type]
    restoration_guidance(denoise, torch.zeros_like(X), tau=1.0)(X, STEP)
    assert (cond.vector == 2).all() and (uncond.vector == 1).all()
    assert (z_lq == 1).all() and (X == 0).all()


def test_guidance_works_through_the_real_denoiser() -> None:
    def network(x, t, cond, z_lq, control_scale):
        return cond.vector.mean(dim=1)[:, None, None, None].expand_as(x)

    denoise = controlled_denoise(Denoiser(), network, _cond(2.0), _cond(1.0), X, cfg=2.0)
    sigma = 14.6146412
    out = denoise(X, Step(0, sigma, sigma, 1.0))
    torch.testing.assert_close(out, torch.full_like(X, -sigma * 3.0))


def test_restoration_guidance_pulls_by_sigma_to_the_power_tau() -> None:
    center = torch.full_like(X, 10.0)
    guided = restoration_guidance(lambda x, s: torch.zeros_like(x), center, tau=2.0, sigma_max=8.0)
    torch.testing.assert_close(guided(X, STEP), torch.full_like(X, 10.0 * (4.0 / 8.0) ** 2))


def test_restoration_guidance_replaces_the_estimate_at_the_top() -> None:
    center = torch.full_like(X, 10.0)
    guided = restoration_guidance(lambda x, s: x, center, tau=4.0, sigma_max=4.0)
    torch.testing.assert_close(guided(X, STEP), center)


def test_restoration_guidance_stops_when_the_next_sigma_is_small() -> None:
    guided = restoration_guidance(lambda x, s: x, torch.ones_like(X), tau=0.0)
    assert torch.equal(guided(X, Step(0, 4.0, 4.0, 0.05)), X)
    assert torch.equal(guided(X, Step(0, 4.0, 4.0, 0.051)), torch.ones_like(X))


@pytest.mark.parametrize("options", [dict(tau=-1.0), dict(tau=1.0, sigma_max=0.0)])
def test_restoration_guidance_refuses_impossible_values(options: dict) -> None:
    with pytest.raises(ValueError):
        restoration_guidance(lambda x, s: x, X, **options)


def test_both_halves_share_one_latent_of_the_degraded_image() -> None:
    seen: list[tuple[int, Tensor]] = []

    def denoiser(network, x, sigma, cond, z_lq, control_scale=1.0) -> Tensor:
        seen.append((len(x), z_lq))
        return x

    z_lq = torch.randn(1, 4, 8, 8)
    pair = (torch.zeros(1, 5),), (torch.ones(1, 5),)
    denoise = controlled_denoise(denoiser, None, *pair, z_lq, cfg=2.0)  # type: ignore[arg-type]
    denoise(torch.randn(1, 4, 8, 8), Step(0, 1.0, 1.0, 0.5))
    windows = [Window(0, 4, 0, 8), Window(4, 8, 0, 8)]
    denoise(torch.randn(2, 4, 4, 8), Step(0, 1.0, 1.0, 0.5), windows)
    crops = torch.cat([z_lq[..., :4, :], z_lq[..., 4:, :]])
    assert [rows for rows, _ in seen] == [2, 4]
    assert all(torch.equal(z, wanted) for (_, z), wanted in zip(seen, (z_lq, crops), strict=True))
