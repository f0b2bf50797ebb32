"""The whole road in a few steps: both stages, resume, evaluation, restoration, ablation."""

import csv
import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from open_supir.base.images import read_image
from open_supir.base.images.write import write_image
from open_supir.commands.ablation import compare
from open_supir.commands.evaluate import evaluate
from open_supir.commands.restore import restore
from open_supir.commands.train import train
from tests.integration.conftest import Compose


def losses(run: Path) -> dict[int, float]:
    """Return the logged training losses by step."""
    with open(run / "csv/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {int(r["step"]): float(r["train/loss"]) for r in rows if r.get("train/loss")}


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_both_stages_evaluation_restoration_and_ablation(
    composed_in: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(composed_in("train", "experiment=robust_encoder", run="one"))
    train(composed_in("train", "experiment=zerosft", run="zerosft"))
    assert f"into {tmp_path / 'zerosft'}; robust encoder: the newest of {tmp_path}" in caplog.text
    found = yaml.safe_load((tmp_path / "zerosft/config.yaml").read_text())["weights"]
    assert found["robust_encoder"] == str(tmp_path / "one/checkpoints/last.ckpt")
    train(composed_in("train", "experiment=residual", run="residual"))

    stage_1, stage_2 = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "zerosft")
    assert all(name.startswith("robust_encoder.encoder.") for name in stage_1["state_dict"])
    prefixes = ("network.control.", "network.connector.")
    assert all(name.startswith(prefixes) for name in stage_2["state_dict"])
    summary = json.loads((tmp_path / "zerosft/summary.json").read_text())
    assert summary["step"] == 4 and {"val/loss", "val/loss_untrained"} <= summary.keys()
    assert (tmp_path / "zerosft/pictures/step_0000004.png").is_file()

    table = evaluate(
        composed_in(
            "evaluate",
            f"checkpoint={tmp_path / 'zerosft/checkpoints/last.ckpt'}",
            "metrics.names=[psnr,ssim,sharpness,musiq]",
            "protocol.repeats=1",
            "protocol.limit=2",
            "device=cpu",
        )
    )
    for method in ("lq", "ordinary_encoder", "robust_encoder", "restored"):
        assert f"| {method}" in table
    assert (tmp_path / "zerosft/eval/table.csv").is_file()

    source = tmp_path / "in"
    write_image(source / "a/odd.png", (torch.rand(3, 37, 61) * 255).byte())
    (source / "broken.png").write_bytes(b"nothing of the kind")
    cfg = composed_in("restore", f"input={source}", f"output={tmp_path / 'out'}", "device=cpu")
    failed = restore(cfg)
    assert len(failed) == 1 and "broken.png" in failed[0]
    assert read_image(tmp_path / "out/a/odd.png").shape == (3, 37, 61)
    names = sorted(p.name for p in (tmp_path / "out").rglob("*.*"))
    assert names == ["odd.png", "odd.png.json"]

    report = compare(composed_in("ablation", f"output={tmp_path / 'report'}"))
    assert "zerosft" in report and "residual" in report


@pytest.mark.parametrize("experiment", ["robust_encoder", "zerosft"])
def test_resumed_run_equals_an_uninterrupted_one(
    composed_in: Compose, tmp_path: Path, experiment: str
) -> None:
    """Same steps, losses, weights, averages and optimiser state, bit for bit."""
    every = ["trainer.log_every_n_steps=1", "val_every=2"]
    name = f"experiment={experiment}"
    straight = [*every, "max_steps=4", "optim.decay_steps=4"]
    train(composed_in("train", name, *straight, run=f"{experiment}/straight"))
    halted = [*every, "max_steps=2", "optim.decay_steps=4"]
    train(composed_in("train", name, *halted, run=f"{experiment}/halted"))
    halted_checkpoint = tmp_path / experiment / "halted/checkpoints/last.ckpt"
    resumed = [*straight, f"ckpt_path={halted_checkpoint}"]
    train(composed_in("train", name, *resumed, run=f"{experiment}/resumed"))

    a, b = (checkpoint(tmp_path / experiment / run) for run in ("straight", "resumed"))
    assert a["global_step"] == b["global_step"] == 4
    assert_equal(a["state_dict"], b["state_dict"])
    moments_a, moments_b = (c["optimizer_states"][0]["state"] for c in (a, b))
    for index, state in moments_a.items():
        assert_equal(state, moments_b[index])
    last_two = {step: losses(tmp_path / experiment / "straight")[step] for step in (2, 3)}
    assert losses(tmp_path / experiment / "resumed") == last_two


def test_ckpt_path_last_without_a_run_is_refused(composed_in: Compose, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        train(composed_in("train", "experiment=zerosft", "ckpt_path=last"))


def test_stage_2_without_stage_1_takes_the_shipped_encoder_and_says_so(
    composed_in: Compose, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(composed_in("train", "experiment=zerosft", "max_steps=1", "val_every=1"))
    assert f"the one shipped with the prior, {workplace / 'robust.safetensors'}" in caplog.text


def test_empty_shard_folder_is_one_clear_line(composed_in: Compose, tmp_path: Path) -> None:
    (tmp_path / "empty/photos").mkdir(parents=True)
    cfg = composed_in("train", "experiment=zerosft", f"data.root={tmp_path / 'empty'}")
    with pytest.raises((FileNotFoundError, ValueError), match="empty"):
        train(cfg)
