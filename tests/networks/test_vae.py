"""Autoencoder: shapes, scaling, posterior, SDXL's size."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from open_supir.networks import AutoencoderKL, RobustEncoder
from open_supir.networks import vae as vae_module
from open_supir.networks.vae import MANY_TOKENS, AttnBlock, DiagonalGaussian
from tests.conftest import randomise


def test_latents_are_scaled_and_a_quarter_of_the_side(vae: AutoencoderKL) -> None:
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    z = vae.encode(image)
    assert z.shape == (2, 4, 8, 12)
    assert torch.equal(z, 0.5 * vae.posterior(image).mean)
    assert vae.decode(z).shape == image.shape


def test_decode_divides_by_the_scale_factor(vae: AutoencoderKL) -> None:
    z = torch.randn(1, 4, 4, 4)
    assert torch.equal(vae.decode(z), vae.decoder(vae.post_quant_conv(z / 0.5)))


def test_kl_of_a_gaussian_equals_the_formula() -> None:
    posterior = DiagonalGaussian(
        torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), math.log(4))
    )
    assert math.isclose(posterior.kl().item(), 0.5 * (4 + 4 - 1 - math.log(4)), rel_tol=1e-6)


def test_posterior_draw_has_the_posteriors_moments() -> None:
    posterior = DiagonalGaussian(torch.full((1, 1, 100, 100), 3.0), torch.zeros(1, 1, 100, 100))
    draw = posterior.sample(torch.randn(1, 1, 100, 100))
    assert abs(draw.mean() - 3.0) < 0.05 and abs(draw.std() - 1.0) < 0.05  # 5 standard errors


def test_robust_encoder_starts_as_the_encoder_and_shares_nothing(vae: AutoencoderKL) -> None:
    robust_encoder = RobustEncoder(vae)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(robust_encoder(image), vae.encode(image))
    with torch.no_grad():
        robust_encoder.encoder.conv_in.weight.zero_()
    assert vae.encoder.conv_in.weight.any()
    assert not robust_encoder.quant_conv.weight.requires_grad


def test_sdxl_autoencoder_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
        )
    assert sum(p.numel() for p in vae.encoder.parameters()) == 34_163_592
    assert sum(p.numel() for p in vae.decoder.parameters()) == 49_490_179
    assert len(vae.state_dict()) == 248


@torch.no_grad()
def test_attention_of_large_images_does_not_hold_every_pair_of_pixels() -> None:
    """torch's kernel that holds few of them takes it; the other one agrees to rounding."""
    side = int(MANY_TOKENS**0.5)
    attention = randomise(AttnBlock(8, groups=4))
    x = torch.randn(1, 8, side, side)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        out = attention(x)
    with sdpa_kernel([SDPBackend.MATH]):
        torch.testing.assert_close(attention(x), out, atol=1e-5, rtol=0)


def test_encoder_keeps_tensors_below_32_bit_indices_where_nothing_needs_a_gradient(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images, of which two fit: parts of two, two and one."""
    image, sizes = torch.rand(5, 3, 32, 48) * 2 - 1, []
    monkeypatch.setattr(vae_module, "MAX_VALUES", 2 * vae.encoder.widest * 33 * 49)
    vae.encoder.conv_in.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    whole = vae.encode(image)
    with torch.no_grad():
        in_parts = vae.encode(image)
    assert sizes == [5, 2, 2, 1]
    torch.testing.assert_close(in_parts, whole.detach(), rtol=1e-5, atol=1e-6)
