"""One step: where it starts, what it evaluates, and what it refuses."""

import pytest
import torch

from open_supir.diffusion import Denoiser, SamplerSettings, restore_latent
from open_supir.diffusion.one_step import OneStepSettings, matched_sigma
from open_supir.diffusion.schedule import sigma_table


def test_the_network_sees_the_degraded_latent_itself_once() -> None:
    """eps: z = x - s n(z_lq) with x = sqrt(1 + s^2) z_lq; the level is the table's."""
    sigma = float(sigma_table()[200])
    z_lq, calls = torch.randn(1, 4, 8, 8), []

    def network(x, t, cond, hint, control_scale):
        calls.append((x, int(t), hint, control_scale))
        return 0.5 * x + 1

    settings = OneStepSettings(sigma=sigma, control_scale=0.7)
    z = restore_latent(
        network, Denoiser(), (torch.ones(1),), None, z_lq, settings=settings,
        randn=lambda like: pytest.fail("one step adds no noise"),
    )  # fmt: skip
    ((x, t, hint, control_scale),) = calls
    torch.testing.assert_close(x, z_lq)
    assert t == 200 and torch.equal(hint, z_lq) and control_scale == 0.7
    root = (1 + sigma**2) ** 0.5
    torch.testing.assert_close(z, root * z_lq - sigma * (0.5 * z_lq + 1))


def test_tiles_of_a_pointwise_network_equal_the_whole() -> None:
    z_lq = torch.randn(1, 4, 24, 32)

    def run(**tiles):
        settings = OneStepSettings(sigma=0.572, **tiles)
        network = lambda x, t, cond, hint, control_scale: x.tanh() + hint  # noqa: E731
        cond = (torch.ones(1),)
        options = {"settings": settings, "randn": torch.randn_like}
        return restore_latent(network, Denoiser(), cond, None, z_lq, **options)

    torch.testing.assert_close(run(tile=16, tile_batch=2), run())


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"num_steps": 8}, "num_steps=8: a one-step model has a single step"),
        ({"cfg_scale": 4.0}, "cfg_scale=4.0: guidance needs a second evaluation"),
        ({"cfg_scale_start": 2.0}, "guidance needs a second evaluation"),
        ({"tau": 4.0}, "tau=4.0: restoration guidance pulls between steps"),
        ({"sigma": 0.0}, "sigma must be a positive number"),
    ],
)
def test_what_has_no_meaning_in_one_step_is_refused(changed: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        OneStepSettings(**{"sigma": 0.572, **changed})


def test_a_level_that_was_never_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="sigma is not set"):
        OneStepSettings().sigmas()
    assert len(SamplerSettings(num_steps=1).sigmas()) == 2


def test_matched_signal_to_noise() -> None:
    """z_lq = z + noise of deviation 0.6 on z of deviation 2 has the ratio of sigma 0.3."""
    assert matched_sigma(0.36, 4.0) == pytest.approx(0.3)
