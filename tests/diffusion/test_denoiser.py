import pytest
import torch
from torch import Tensor

from open_supir.diffusion import Denoiser
from open_supir.diffusion.schedule import index_to_sigma


def _latents(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 5, 6, generator=generator), torch.randn(
        2, 4, 5, 6, generator=generator
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_perfect_network_gives_the_clean_latent(prediction: str) -> None:
    """eps and v as defined for the variance-preserving latent (arXiv:2202.00512)."""
    z, noise = _latents()
    sigma = index_to_sigma(torch.tensor([40, 900]))
    s = sigma[:, None, None, None]
    alpha, beta = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()

    def network(x, t, cond, z_lq, control_scale):
        torch.testing.assert_close(x, alpha * z + beta * noise)
        return noise if prediction == "eps" else alpha * noise - beta * z

    denoised = Denoiser(prediction)(network, z + s * noise, sigma, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(denoised, z, atol=2e-5, rtol=0)  # eps at sigma 10 cancels digits


def test_edm_coefficients_are_those_of_the_paper() -> None:
    x, out = _latents()
    sigma = torch.tensor([0.3, 5.0])
    s = sigma[:, None, None, None]

    def network(scaled, t, cond, z_lq, control_scale):
        torch.testing.assert_close(scaled, x / (s**2 + 0.25).sqrt())
        torch.testing.assert_close(t, sigma.log() / 4)
        return out

    denoised = Denoiser("edm")(network, x, sigma, None, None)
    c_skip, c_out = 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25).sqrt()
    torch.testing.assert_close(denoised, c_skip * x + c_out * out)


def test_quantised_sigma_comes_from_the_table_with_its_integer_index() -> None:
    x, out = _latents()
    seen = {}

    def network(scaled, t, cond, z_lq, control_scale):
        seen.update(t=t, cond=cond, z_lq=z_lq, control_scale=control_scale)
        return out

    denoised = Denoiser("eps")(network, x, torch.tensor([16.08, 0.731]), "cond", None, 0.7)
    assert seen["t"].dtype == torch.int64 and seen["t"][0].item() == 999
    s = index_to_sigma(seen["t"])[:, None, None, None]
    torch.testing.assert_close(denoised, x - s * out)
    assert seen["cond"] == "cond" and seen["z_lq"] is None and seen["control_scale"] == 0.7


def test_unquantised_sigma_is_kept() -> None:
    x, out = _latents()
    sigma = torch.tensor([3.21, 0.5])
    denoised = Denoiser("eps", quantize=False)(lambda *a: out, x, sigma, None, None)
    torch.testing.assert_close(denoised, x - sigma[:, None, None, None] * out)


def test_arithmetic_stays_float32_around_a_half_precision_network() -> None:
    x, _ = _latents()
    denoised = Denoiser("v")(
        lambda scaled, *a: torch.zeros_like(scaled, dtype=torch.bfloat16),
        x,
        torch.full((2,), 0.0291672),
        None,
        None,
    )
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised, x / (0.0291672**2 + 1), atol=1e-6, rtol=0)


def test_gradient_flows_to_the_network() -> None:
    x, _ = _latents()
    weight = torch.ones((), requires_grad=True)
    Denoiser()(lambda s, *a: weight * s, x, torch.ones(2), None, None).square().mean().backward()
    assert weight.grad is not None and weight.grad.abs() > 0


def test_unknown_prediction_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="eps, v, edm"):
        Denoiser("x0")  # type: ignore[arg-type]
