"""Stage 1: a fixed target, and gradients in the encoder only."""

import math

import torch
import torch.nn.functional as F

from open_supir.base.images import to_signed
from open_supir.networks import AutoencoderKL
from open_supir.training.robust_encoder_module import psnr
from tests.training.modules import batch, darken, robust_module


def quiet(module):
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


def test_loss_equals_its_formula(vae: AutoencoderKL) -> None:
    module, given = quiet(robust_module(vae)), batch()
    hq = to_signed(given["hq"])
    z_lq = module.robust_encoder(darken(hq, given["seed"]))
    errors = [F.mse_loss(a, b) for a, b in zip(vae.decode(z_lq), hq, strict=True)]
    log_error = torch.stack(errors).add(1e-4).log().mean()
    expected = log_error + 0.1 * F.mse_loss(z_lq, vae.encode(hq))
    assert torch.allclose(module.training_step(given, 0)["loss"], expected)


def test_a_constant_image_is_no_minimum(vae: AutoencoderKL) -> None:
    """The published loss is zero for an encoder that ignores its input; this one is not."""
    module = quiet(robust_module(vae))
    with torch.no_grad():
        for parameter in module.robust_encoder.encoder.parameters():
            parameter.zero_()
    assert module.training_step(batch(), 0)["loss"] > math.log(0.1)


def test_only_the_robust_encoder_is_trained(vae: AutoencoderKL) -> None:
    module = quiet(robust_module(vae))
    module.training_step(batch(), 0)["loss"].backward()
    assert all(name.startswith("robust_encoder.encoder.") for name in module.trained_names())
    assert all(p.grad is None for p in vae.parameters())
    assert module.robust_encoder.encoder.conv_in.weight.grad is not None


def test_psnr_equals_its_definition() -> None:
    """An error of 0.2 in [-1, 1] is 0.1 in [0, 1]: 20 dB."""
    reference = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(psnr(reference + 0.2, reference), torch.tensor(20.0), atol=1e-4)
