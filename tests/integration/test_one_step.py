"""One step, by the commands: train from a stage 2, restore with one evaluation, what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from open_supir.base.images.write import write_image
from open_supir.base.places import CONF
from open_supir.checkpoints.convert import convert
from open_supir.commands.restore import restore
from open_supir.commands.train import train
from open_supir.inference.checkpoint import load_networks
from open_supir.networks import ControlledUNet
from tests.integration.conftest import Compose
from tests.integration.test_road import checkpoint

SHORT = ("experiment=one_step", "sampler.num_steps=1", "max_steps=2", "val_every=1",
         "data.global_batch=2", "data.val_size=1", "one_step.snr_samples=4")  # fmt: skip


def test_a_trained_student_restores_with_one_evaluation(
    composed_in: Compose, stage_2: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    train(composed_in("train", *SHORT, f"weights.supir={stage_2}", run="one"))
    assert "matched signal-to-noise of 4 samples" in caplog.text
    trained = checkpoint(tmp_path / "one")
    sigma = trained["recipe"]["sampler"]["sigma"]
    assert trained["recipe"]["stage"] == "supir" and sigma > 0
    best = json.loads((tmp_path / "one/checkpoints/best.json").read_text())
    assert [row["step"] for row in best["snapshots"]] == [1, 2]

    calls, forward = [], ControlledUNet.forward

    def counted(self, x, t, cond, z_lq, control_scale=1.0):
        calls.append(control_scale)
        return forward(self, x, t, cond, z_lq, control_scale)

    monkeypatch.setattr(ControlledUNet, "forward", counted)
    write_image(tmp_path / "in/a.png", torch.rand(3, 64, 64))
    places = (f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu")
    own = f"checkpoint={tmp_path / 'one/checkpoints/best.ckpt'}"
    assert not restore(composed_in("restore", *places, own, "sampler.control_scale=0.5"))
    assert calls == [0.5]
    record = json.loads((tmp_path / "out/a.png.json").read_text())
    assert record["options"]["settings"]["sigma"] == sigma
    for asked, why in (("sampler.tau=4.0", "restoration guidance pulls"),
                       ("sampler.cfg_scale=4.0", "guidance needs a second"),
                       ("preset=quality", "restores in one step")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            restore(composed_in("restore", *places, own, asked))


def test_a_student_with_lora_layers_restores_too_and_converts_with_the_base(
    composed_in: Compose, stage_2: Path, tmp_path: Path
) -> None:
    asked = ("max_steps=1", "one_step.unet_lora=16", "one_step.sigma=0.5", "data.val_size=1")
    train(composed_in("train", *SHORT, *asked, f"weights.supir={stage_2}", run="one"))
    write_image(tmp_path / "in/a.png", torch.rand(3, 64, 64))
    places = (f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu")
    path = tmp_path / "one/checkpoints/last.ckpt"
    assert not restore(composed_in("restore", *places, f"checkpoint={path}"))
    assert (tmp_path / "out/a.png").is_file()

    trained = torch.load(path, weights_only=True)
    for tensors in (trained["state_dict"], trained.get("ema") or {}):
        for name in tensors:
            if ".lora_B." in name:
                tensors[name] = torch.full_like(tensors[name], 0.1)
    torch.save(trained, path)
    whole = tmp_path / "whole.safetensors"
    settings = {**_convert_settings(), "input": str(path), "output": str(whole)}
    with pytest.raises(ValueError, match="LoRA layers on the UNet.*format=complete"):
        convert(settings)
    convert(settings | {"format": "complete", "dtype": "float32"})
    base = load_networks(stage_2).network.unet.state_dict()
    wanted = load_networks(path).network.unet.state_dict()
    assert sum(not torch.equal(wanted[name], base[name]) for name in base) > 10
    found = load_networks(whole).network.unet.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    both = [torch.load(stage_2, weights_only=True)["recipe"]["weights"]["sdxl"], str(path)]
    native = {"input": both, "format": "native", "dtype": "float32"}
    convert(settings | native | {"output": str(tmp_path / "native.safetensors")})
    found = load_networks(tmp_path / "native.safetensors").network.unet.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    sheet = f"output={tmp_path / 'again'}"
    assert not restore(
        composed_in("restore", places[0], sheet, "device=cpu", f"checkpoint={whole}")
    )
    assert (tmp_path / "again/a.png").is_file()


def _convert_settings() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(f"{CONF}/convert.yaml"))  # type: ignore[return-value]


def test_a_student_starts_from_a_stage_2(composed_in: Compose) -> None:
    with pytest.raises(ValueError, match="starts from a finished stage 2: weights.supir=FILE"):
        train(composed_in("train", *SHORT, "weights.supir=null", "weights.robust_encoder=clean"))
