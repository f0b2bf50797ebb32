"""What each stage starts from: parts built without memory, loaded by name, in their dtypes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_supir.checkpoints import export_supir
from open_supir.commands.train import train
from open_supir.training.base_weights import load_base_weights
from tests.conftest import randomise
from tests.integration.conftest import Compose

STAGE_2 = ("experiment=zerosft", "control=full", "weights.robust_encoder=clean")
UNET = "model.diffusion_model."


def built(cfg: Any) -> Any:
    """Instantiate a training module as train() does; nothing is loaded yet."""
    return instantiate(cfg.module, recipe={}, _convert_="all")


def loaded(cfg: Any) -> Any:
    module = built(cfg)
    load_base_weights(module, cfg)
    return module


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


@pytest.mark.parametrize("experiment", ["robust_encoder", "zerosft"])
def test_only_what_no_file_holds_is_built_with_memory(
    composed_in: Compose, experiment: str
) -> None:
    module = built(composed_in("train", f"experiment={experiment}"))
    real = [name for name, tensor in tensors(module).items() if not tensor.is_meta]
    assert all(name.startswith("network.connector.") or "attn_mask" in name for name in real)
    assert bool(real) == (experiment == "zerosft")


@pytest.mark.parametrize("experiment", ["robust_encoder", "zerosft"])
def test_nothing_stays_without_memory(composed_in: Compose, experiment: str) -> None:
    module = loaded(composed_in("train", f"experiment={experiment}", "weights.shipped=null",
                                "weights.robust_encoder=clean"))  # fmt: skip
    assert not [name for name, tensor in tensors(module).items() if tensor.is_meta]


def test_the_prior_and_its_autoencoder_can_go_on_from_earlier_ones(
    composed_in: Compose, workplace: Path
) -> None:
    path, held = workplace / "prior.safetensors", load_file(workplace / "prior.safetensors")
    prior = loaded(composed_in("train", "experiment=prior", f"weights.prior={path}"))
    vae = loaded(composed_in("train", "experiment=vae", f"weights.vae={path}"))
    for module, prefix in ((prior.unet, UNET), (vae.vae, "first_stage_model.")):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, held[prefix + name].float()), name
            assert parameter.requires_grad and parameter.dtype == torch.float32


def test_adaptor_starts_as_the_file_has_the_unet_and_its_hint_as_zero(
    composed_in: Compose, workplace: Path
) -> None:
    """From the file, not from the frozen UNet, which may be held in bfloat16."""
    cfg = composed_in("train", *STAGE_2, "trainer.precision=bf16-mixed",
                      "weights.frozen_dtype=bfloat16")  # fmt: skip
    module, held = loaded(cfg), load_file(workplace / "prior.safetensors")
    for name, tensor in module.network.control.state_dict().items():
        assert tensor.dtype == torch.float32
        wanted = held.get(UNET + name, torch.zeros(()))
        assert torch.equal(tensor, wanted.float().expand_as(tensor)), name


def test_base_that_predicts_v_needs_a_denoiser_that_does(
    composed_in: Compose, workplace: Path, tmp_path: Path
) -> None:
    base, eps = tmp_path / "v.safetensors", tmp_path / "eps.safetensors"
    tensors = load_file(workplace / "prior.safetensors")
    save_file(tensors | {"v_pred": torch.ones(1)}, base)
    save_file(tensors, eps)
    with pytest.raises(ValueError, match="predicts v, but eps .* train with denoiser=v"):
        loaded(composed_in("train", *STAGE_2, f"weights.sdxl={base}", "denoiser=eps"))
    for denoiser in ("v", "edm"):
        with pytest.raises(ValueError, match=f"predicts eps, but {denoiser} is expected"):
            loaded(composed_in("train", *STAGE_2, f"weights.sdxl={eps}", f"denoiser={denoiser}"))
    module = loaded(composed_in("train", *STAGE_2, f"weights.sdxl={base}", "denoiser=v"))
    assert module.denoiser.prediction == "v"


def test_frozen_parts_are_held_as_told_and_trained_ones_in_float32(composed_in: Compose) -> None:
    cfg = composed_in("train", *STAGE_2, "trainer.precision=bf16-mixed",
                      "weights.frozen_dtype=bfloat16")  # fmt: skip
    dtypes = {True: set(), False: set()}
    for parameter in loaded(cfg).parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


@pytest.mark.parametrize("experiment", ["robust_encoder", "zerosft"])
def test_training_runs_on_frozen_parts_in_bfloat16(
    composed_in: Compose, tmp_path: Path, experiment: str
) -> None:
    """A step, validation and its pictures; the held-out figure is that of float32 to a few times
    bfloat16's 2 ** -8.
    """
    few = ["max_steps=1", "val_every=1", "sampler.num_steps=1"]
    few += ["module.val_draws=1"] if experiment == "zerosft" else []
    mixed = ["trainer.precision=bf16-mixed", "weights.frozen_dtype=bfloat16"]
    name = f"experiment={experiment}"
    losses = []
    for run, settings in (("full", []), ("mixed", mixed)):
        losses.append(train(composed_in("train", name, *settings, *few, run=run)))
        assert (tmp_path / run / "pictures").is_dir()
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_frozen_dtype_without_autocast_is_refused(composed_in: Compose) -> None:
    cfg = composed_in("train", *STAGE_2, "weights.frozen_dtype=bfloat16")
    with pytest.raises(ValueError, match="needs trainer.precision=bf16-mixed, got 32-true"):
        loaded(cfg)
    with pytest.raises(ValueError, match="unknown dtype 'int8'; known: float32"):
        loaded(composed_in("train", *STAGE_2, "weights.frozen_dtype=int8"))
    with pytest.raises(ValueError, match="VAE overflows"):
        loaded(composed_in("train", *STAGE_2, "weights.frozen_dtype=float16"))


@pytest.fixture
def supir_file(composed_in: Compose, tmp_path: Path) -> Path:
    """A SUPIR file of the tiny size: full depth, ZeroSFT with cross-attention, robust encoder."""
    module = loaded(composed_in("train", *STAGE_2, "connector=zerosft_released"))
    network, path = module.network, tmp_path / "supir.safetensors"
    parts = {"control": network.control, "connector": network.connector}
    export_supir(
        path,
        {**{k: randomise(v) for k, v in parts.items()}, "robust_encoder": module.robust_encoder},
        {},
        dtype=torch.float16,
    )
    return path


def test_stage_2_starts_from_a_supir_file_and_takes_its_encoder(
    composed_in: Compose, supir_file: Path
) -> None:
    cfg = composed_in("train", "experiment=zerosft_released", f"weights.supir={supir_file}")
    module = built(cfg)
    used = load_base_weights(module, cfg)["weights"]
    assert used["supir"] == used["robust_encoder"] == str(supir_file)
    held = load_file(supir_file)
    for part, prefix in (("control", "model.control_model."), ("connector", UNET)):
        state = getattr(module.network, part).state_dict()
        assert all(torch.equal(held[prefix + name].float(), state[name]) for name in state)


def test_supir_file_of_another_shape_says_what_to_run_with(
    composed_in: Compose, supir_file: Path
) -> None:
    def attempt(*settings: str) -> Any:
        return loaded(composed_in("train", *settings, f"weights.supir={supir_file}"))

    with pytest.raises(KeyError, match="run with control=full"):
        attempt("experiment=zerosft", "connector=zerosft_released")
    with pytest.raises(KeyError, match="run with connector=zerosft_released"):
        attempt("experiment=zerosft", "control=full")


def test_stage_1_may_start_from_another_robust_encoder(
    composed_in: Compose, workplace: Path, tmp_path: Path
) -> None:
    held = load_file(workplace / "robust.safetensors")
    path = tmp_path / "other.safetensors"
    save_file({key: tensor + 1 for key, tensor in held.items()}, path)
    module = loaded(
        composed_in("train", "experiment=robust_encoder", f"weights.robust_encoder={path}")
    )
    name = "first_stage_model.denoise_encoder.conv_in.bias"
    assert torch.equal(module.robust_encoder.encoder.conv_in.bias.data, held[name] + 1)


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ("weights.sdxl=nowhere.safetensors", FileNotFoundError, "setting weights.sdxl"),
        ("weights.robust_encoder=nowhere.ckpt", FileNotFoundError, "weights.robust_encoder"),
        ("weights.prior=other.ckpt", ValueError, "weights.prior=other.ckpt is what experiment=pr"),
    ],
)
def test_files_are_checked_before_shards_are_made(
    composed_in: Compose, monkeypatch: pytest.MonkeyPatch, setting: str, error: Any, words: str
) -> None:
    def too_early(_: Any) -> None:
        raise AssertionError("data came first")

    monkeypatch.setattr("open_supir.commands.train.check_data", too_early)
    with pytest.raises(error, match=words):
        train(composed_in("train", "experiment=zerosft", setting))
