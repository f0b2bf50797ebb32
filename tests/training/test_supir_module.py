"""Stage 2: the loss by hand, what is trained, what a checkpoint holds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from open_supir.base.images import to_signed
from open_supir.data.samples import collate
from open_supir.diffusion.training_noise import seeded_randn
from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.networks import conditioner as conditioner_module
from open_supir.training import fit
from open_supir.training.trained_parts import lq_of
from tests.training.modules import batch, darken, supir_module


@pytest.fixture
def module(unet: UNet, vae: AutoencoderKL, conditioner: Conditioner):
    module = supir_module(unet, vae, conditioner)
    module.log = lambda *args, **kwargs: None
    return module


def test_loss_is_the_error_of_predicted_noise(module) -> None:
    """sigma^-2 (denoised - z)^2 is (predicted - true noise)^2: the loss SDXL was trained with."""
    given = batch()
    hq = to_signed(given["hq"])
    z, z_lq = module.vae.encode(hq), module.robust_encoder(darken(hq, given["seed"]))
    sigma = module.noise.sample(given["seed"])[:, None, None, None]
    noise = seeded_randn(given["seed"], z.shape)
    cond = module.conditioner(given["caption"], given["sizes"])
    index = (sigma.flatten()[:, None] - module_table()).abs().argmin(dim=1)
    x = (z + sigma * noise) / (sigma**2 + 1).sqrt()
    predicted = module.network(x, index, cond, z_lq)
    expected = (predicted - noise).square().mean()
    assert torch.allclose(module.training_step(given, 0)["loss"], expected, rtol=1e-4)


def module_table() -> torch.Tensor:
    """The DDPM table by its published formula."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = (1 - beta).cumprod(0)
    return ((1 - abar) / abar).sqrt().float()


def test_a_sample_has_the_same_loss_in_any_batch(module) -> None:
    """All randomness comes from the samples' own seeds."""
    whole = batch(4)
    halves = [{k: v[i : i + 2] for k, v in whole.items()} for i in (0, 2)]
    together = module.training_step(whole, 0)["loss"]
    apart = sum(module.training_step(half, 0)["loss"] for half in halves) / 2
    assert torch.allclose(together, apart, rtol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("precomputed", [[], ["text"]])
def test_workers_make_the_tokens_of_a_training_batch(
    module, monkeypatch: pytest.MonkeyPatch, precomputed: list[str]
) -> None:
    """The step then makes none, and has the loss that it has with captions."""
    for name in ("check_crops", "keep_global_batch"):
        monkeypatch.setattr(fit, name, lambda *_, **__: None)
    data: Any = SimpleNamespace(
        precomputed=precomputed, global_batch=2, micro_batch=2, collate=collate, made_by={},
        sample_reader=SimpleNamespace(crop_size=32),
    )  # fmt: skip
    trainer: Any = None
    switches: Any = {"channels_last": False, "checkpointing": "none", "compile": "off"}
    fit.make_ready(module, data, trainer, **switches)
    if precomputed:
        assert data.collate is collate
        return
    sample: Any = {
        "hq": np.zeros((32, 32, 3), np.uint8), "caption": "a cat", "sizes": np.zeros(6, np.float32),
        "is_negative": False, "source": "photos", "key": "k", "seed": 0,
    }  # fmt: skip
    tokens = data.collate([sample, sample])["tokens"]
    given = batch()
    expected = module.training_step(given, 0)["loss"]
    monkeypatch.setattr(conditioner_module, "tokenize", None)
    assert torch.equal(module.training_step({**given, "tokens": tokens}, 0)["loss"], expected)


def test_only_adaptor_and_connector_are_trained(module) -> None:
    module.training_step(batch(), 0)["loss"].backward()
    prefixes = ("network.control.", "network.connector.")
    assert all(name.startswith(prefixes) for name in module.trained_names())
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or name.startswith(prefixes)


def test_state_dict_holds_trained_keys_only(module) -> None:
    assert list(module.state_dict()) == module.trained_names()


def test_loading_names_the_first_missing_and_unexpected_key(module) -> None:
    state = module.state_dict()
    first = next(iter(state))
    tensor = state.pop(first)
    with pytest.raises(KeyError, match=f"1 keys missing .first: {first}"):
        module.load_state_dict(state)
    with pytest.raises(KeyError, match="1 unexpected .first: stranger"):
        module.load_state_dict({**state, first: tensor, "stranger": tensor})


def test_held_out_pairs_bring_their_own_lq(module) -> None:
    """The LQ of the batch is what the robust encoder sees; the degradation is not asked."""
    given = batch()
    own = (darken(to_signed(given["hq"]), given["seed"]) + 1) * 127.5
    logged = []
    module.log = lambda name, value, **options: logged.append(value)
    module.validation_step({**given, "lq": given["hq"]}, 0)
    module.degradation = lambda *_: pytest.fail("the batch has its own LQ")
    module.degradation.target = lambda hq: hq
    module.validation_step({**given, "lq": given["hq"]}, 0)
    assert torch.equal(*logged)
    columns = module.pictures({**given, "lq": own.round().to(torch.uint8)})
    expected = own.round() / 255
    assert torch.allclose(columns["LQ"], expected, atol=1e-6)


def test_pictures_are_lq_cleaned_restored_and_hq(module) -> None:
    given = batch()
    columns = module.pictures(given)
    assert list(columns) == ["LQ", "robust encoder", "restored", "HQ"]
    assert all(c.shape == (2, 3, 32, 32) and 0 <= c.min() <= c.max() <= 1 for c in columns.values())
    assert torch.equal((columns["HQ"] * 255).round().byte(), given["hq"])


def test_real_pairs_bring_their_own_lq_and_the_others_are_degraded() -> None:
    """Values: darken halves the contrast and shifts by the seed; a pair's LQ is its file's."""
    given = batch(3)
    hq = to_signed(given["hq"])
    given["lq"] = torch.full_like(given["hq"], 255)
    given["paired"] = torch.tensor([False, True, False])
    lq = lq_of(given, hq, darken)
    expected = 0.5 * hq - torch.arange(3)[:, None, None, None] / 100
    expected[1] = 1.0
    assert torch.equal(lq, expected)
    with pytest.raises(ValueError, match="resize_back"):
        lq_of(given, hq, lambda images, seeds: images[..., ::2, ::2])
