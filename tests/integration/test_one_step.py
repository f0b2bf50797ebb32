"""One step, by the commands: train from a stage 2, restore with one evaluation, what is refused."""

import json
import logging
from pathlib import Path

import pytest
import torch

from open_supir.base.images.write import write_image
from open_supir.commands.restore import restore
from open_supir.commands.train import train
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


def test_a_student_with_lora_layers_restores_too(
    composed_in: Compose, stage_2: Path, tmp_path: Path
) -> None:
    asked = ("max_steps=1", "one_step.unet_lora=16", "one_step.sigma=0.5", "data.val_size=1")
    train(composed_in("train", *SHORT, *asked, f"weights.supir={stage_2}", run="one"))
    write_image(tmp_path / "in/a.png", torch.rand(3, 64, 64))
    places = (f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu")
    own = f"checkpoint={tmp_path / 'one/checkpoints/last.ckpt'}"
    assert not restore(composed_in("restore", *places, own))
    assert (tmp_path / "out/a.png").is_file()


def test_a_student_starts_from_a_stage_2(composed_in: Compose) -> None:
    with pytest.raises(ValueError, match="starts from a finished stage 2: weights.supir=FILE"):
        train(composed_in("train", *SHORT, "weights.supir=null", "weights.robust_encoder=clean"))
