"""LoRAs of the base along the road: training records them, restoring merges them again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from open_supir.checkpoints import load_parts
from open_supir.inference.checkpoint import load_networks, read_recipe
from open_supir.inference.model import Model
from open_supir.training.base_weights import load_base_weights
from open_supir.training.recipe import ARCHITECTURE
from tests.integration.conftest import Compose
from tests.integration.test_base_weights import built
from tests.integration.test_supir_file import converted
from tests.test_configs import plain

LAYER = "middle_block.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def lora(composed_in: Compose, tmp_path: Path) -> Path:
    """A LoRA of one layer of the UNet and its copy in the adaptor."""
    unet = built(composed_in("train", "experiment=zerosft")).network.unet
    weight = unet.get_parameter(f"{LAYER}.weight")
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    path = tmp_path / "lora.safetensors"
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, path)
    return path


def _checkpoint(cfg: Any, path: Path) -> tuple[Any, Path]:
    module = built(cfg)
    recipe = {
        "stage": "supir",
        "architecture": {part: plain(cfg, part) for part in ARCHITECTURE},
        "sampler": plain(cfg, "sampler"),
        "options": plain(cfg, "options"),
        **load_base_weights(module, cfg),
    }
    state = {"format": "open-supir", "recipe": recipe, "state_dict": module.state_dict()}
    torch.save(state, path)
    return module, path


def test_training_merges_and_records_and_restoring_does_the_same(
    composed_in: Compose, workplace: Path, lora: Path, tmp_path: Path
) -> None:
    """As if the merged file were the base: UNet, and the adaptor, which starts as a copy."""
    given = f"weights.loras=[{{path: {lora}, scale: 0.5}}]"
    cfg = composed_in("train", "experiment=zerosft", "weights.robust_encoder=clean", given)
    module, checkpoint = _checkpoint(cfg, tmp_path / "last.ckpt")
    base = workplace / "prior.safetensors"
    merged = converted(base, tmp_path / "merged.safetensors", format="sdxl", dtype="float32",
                       loras=[{"path": str(lora), "scale": 0.5}])  # fmt: skip
    fresh = built(cfg).network.unet
    load_parts(merged, {"unet": fresh}, ignored=("v_pred",))
    wanted = fresh.get_parameter(f"{LAYER}.weight")
    control = module.network.control.get_parameter(f"{LAYER}.weight")
    restored = load_networks(checkpoint).network.unet.get_parameter(f"{LAYER}.weight")
    for found in (module.network.unet.get_parameter(f"{LAYER}.weight"), control, restored):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)

    without = load_networks(checkpoint, weights={"loras": []}).network.unet
    load_parts(base, {"unet": fresh}, dtype=torch.float32)
    assert torch.equal(
        without.get_parameter(f"{LAYER}.weight"), fresh.get_parameter(f"{LAYER}.weight")
    )

    recipe = read_recipe(checkpoint)
    said = Model(checkpoint=checkpoint, recipe=recipe, weights={}).described()["weights.loras"]
    assert [(one["name"], one["scale"]) for one in said] == [("lora.safetensors", 0.5)]
    lora.write_bytes(merged.read_bytes())
    with pytest.raises(ValueError, match="lora.safetensors: not the LoRA that the checkpoint was"):
        load_networks(checkpoint)


def test_stages_without_a_unet_refuse_loras(composed_in: Compose, lora: Path) -> None:
    cfg = composed_in("train", "experiment=robust_encoder", f"weights.loras=[{lora}]")
    with pytest.raises(ValueError, match="weights.loras: only stage 2 has"):
        load_base_weights(built(cfg), cfg)
