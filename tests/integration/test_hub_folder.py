"""A model's folder for the hub: written by convert, read by Restorer.from_pretrained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from open_supir.base.places import SHIPPED_MODEL
from open_supir.checkpoints.convert import convert
from open_supir.inference import Restorer
from open_supir.inference.checkpoint import read_recipe
from open_supir.inference.model import find_checkpoint
from tests.test_configs import ROOT

NO_RECIPE = {"recipe": "null"}


def converted(output: Path, **changes: Any) -> Path:
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/convert.yaml"))
    assert isinstance(settings, dict)
    return convert({**settings, "output": str(output), "format": "hub", **changes})


def test_from_pretrained_restores_as_the_file_that_the_folder_was_made_of(tmp_path: Path) -> None:
    folder = converted(tmp_path / "mine", input=SHIPPED_MODEL, license="Apache-2.0")
    assert find_checkpoint(str(folder), runs_dir=tmp_path) == folder
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = Restorer.from_checkpoint(SHIPPED_MODEL)(image, caption="").restored
    theirs = Restorer.from_pretrained(folder, device="cpu")(image, caption="").restored
    assert torch.equal(ours, theirs)


def test_card_and_config_say_what_the_hub_reads(tmp_path: Path) -> None:
    """The trained parts alone, over a base that has a name, with an evaluation."""
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    rows = [
        {"image": n, "method": m, "metric": "psnr", "value": v, "settings": {"protocol": "demo"}}
        for n, m, v in (("a", "restored", 20.0), ("b", "restored", 21.0), ("a", "lq", 5.0))
    ]
    (evaluation / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (evaluation / "table.md").write_text("| method | PSNR |\n|---|---|\n| restored | 20.5 |\n")
    parts = ["control", "connector", "robust_encoder"]
    settings = {"parts": parts, "license": "mine, non-commercial", "evaluation": str(evaluation)}
    folder = converted(tmp_path / "mine", input=SHIPPED_MODEL, **settings)
    config = json.loads((folder / "config.json").read_text())
    assert set(config["parts"]) == set(parts) and config["recipe"]["stage"] == "supir"
    config["base"] = "hf://stabilityai/stable-diffusion-xl-base-1.0/sd_xl.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    assert read_recipe(folder)["weights"]["sdxl"] == config["base"]
    card = (folder / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "other" and data["license_name"] == "mine, non-commercial"
    assert data["library_name"] == "open-supir" and data["pipeline_tag"] == "image-to-image"
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "psnr", "value": 20.5}
    assert "| restored | 20.5 |" in card and '"stage": "supir"' in card


def test_a_file_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format=hub needs a stage-2 checkpoint"):
        converted(
            tmp_path / "mine", input=SHIPPED_MODEL, parts=["vae"], metadata={"recipe": "null"}
        )
