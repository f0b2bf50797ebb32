"""python -m src.precompute stores what the networks give in the step, to the rounding of bf16."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from open_supir.base.images import to_signed
from open_supir.commands.precompute import precompute
from open_supir.commands.train import build
from open_supir.data.precomputed import column_path
from open_supir.data.storage import StorageError
from open_supir.training.base_weights import load_base_weights
from tests.integration.conftest import Compose

BF16 = 2**-8  # relative rounding of a number with 8 bits of mantissa


@pytest.fixture
def options(workplace: Path, tmp_path: Path) -> list[str]:
    """One source of the workplace, whole images, both kinds."""
    shutil.copytree(workplace / "shards", tmp_path / "shards")
    return ["experiment=zerosft", f"data.root={tmp_path}/shards", "data.crop_size=128",
            "data.crop.flip_prob=0", "data.sources.dead_leaves=null", "data.sources.photos=null",
            "data.precomputed=[latents,text]", "degradation.config.sharpen=false",
            "weights.robust_encoder=clean"]  # fmt: skip


def test_stored_features_equal_those_of_the_step(
    composed_in: Compose, options: list[str], tmp_path: Path
) -> None:
    cfg = composed_in("train", *options)
    shards = sorted((tmp_path / "shards" / "negative").glob("*.tar"))
    assert precompute(cfg) == 2 * len(shards)
    module = instantiate(cfg.module, recipe={}, _convert_="all")
    load_base_weights(module, cfg)
    data = instantiate(cfg.data, _convert_="all")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    plain = {k: v for k, v in batch.items() if k not in ("latents", "context", "pooled")}
    hq = to_signed(batch["hq"])
    with torch.no_grad():
        latents = [module.target_latents(b, hq) for b in (batch, plain)]
        conds = [module.conditioning(b) for b in (batch, plain)]
    for stored, made in (latents, *zip(*conds, strict=True)):
        assert stored.shape == made.shape and stored.dtype == made.dtype
        torch.testing.assert_close(stored, made, rtol=BF16, atol=1e-4)
    loss = module.training_step(batch, 0)
    assert torch.isfinite(loss["loss"] if isinstance(loss, dict) else loss)


def test_second_run_finds_its_work_done_and_a_changed_tar_undone(
    composed_in: Compose, options: list[str], tmp_path: Path
) -> None:
    cfg = composed_in("train", *options)
    cfg.data.precomputed = ["text"]
    written = precompute(cfg)
    assert written and precompute(cfg) == 0
    tar = sorted((tmp_path / "shards" / "negative").glob("*.tar"))[0]
    os.remove(column_path(tar, "text"))
    assert precompute(cfg) == 1


def test_features_of_other_weights_stop_a_training_and_are_made_again(
    composed_in: Compose, options: list[str], tmp_path: Path
) -> None:
    cfg = composed_in("train", *options)
    assert precompute(cfg) > 0

    def start() -> None:
        _, data, _ = build(cfg)
        data.setup("fit")
        data.train_dataloader()

    start()
    other = tmp_path / "other.safetensors"
    state = load_file(cfg.weights.sdxl)
    name = next(name for name in state if name.startswith("first_stage_model.encoder"))
    save_file(state | {name: state[name] + 0.5}, other)
    cfg.weights.vae = str(other)
    with pytest.raises(StorageError, match="latents were made with other weights"):
        start()
    shards = sorted((tmp_path / "shards" / "negative").glob("*.tar"))
    assert precompute(cfg) == len(shards)  # the latents; the text is as it was
    start()


def test_sharpened_targets_are_refused(composed_in: Compose, options: list[str]) -> None:
    cfg = composed_in("train", *options, "degradation.config.sharpen=true")
    module = instantiate(cfg.module, recipe={}, _convert_="all")
    with pytest.raises(ValueError, match="degradation.config.sharpen=false"):
        module.target_latents({"latents": torch.zeros(1)}, torch.zeros(1, 3, 8, 8))


def test_nothing_to_precompute_says_what_to_write(composed_in: Compose) -> None:
    with pytest.raises(ValueError, match=r"data.precomputed=\[latents,text\]"):
        precompute(composed_in("train", "experiment=zerosft"))
