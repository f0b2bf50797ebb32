"""The real command: signals, automatic resume, requeueing, replay of an odd step."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from open_supir.base.run_folders import newest_checkpoint
from open_supir.commands.train import replay, train
from open_supir.training.checkpoint_io import committed
from open_supir.training.guard import StepGuard
from open_supir.training.interruption import requeue_slurm_job
from open_supir.training.resume import resolve_checkpoint
from tests.integration.conftest import Compose
from tests.integration.test_road import assert_equal, checkpoint, losses
from tests.waiting import PATIENCE, wait_for

QUICK = ("experiment=zerosft", "sampler.num_steps=1", "module.val_draws=1", "val_every=2")


def found_for(cfg: Any) -> str | None:
    names = ("ckpt_path", "run_dir", "runs_dir", "stage", "name")
    options = {name: cfg[name] for name in names}
    return resolve_checkpoint(**options | {"run_dir": Path(cfg.run_dir)})


def test_auto_starts_anew_then_goes_on_in_the_same_folder(
    composed_in: Compose, tmp_path: Path
) -> None:
    every = (*QUICK, "trainer.log_every_n_steps=1", "optim.decay_steps=4")
    train(composed_in("train", *every, "max_steps=2", "ckpt_path=auto", run="a"))
    train(composed_in("train", *every, "max_steps=4", "ckpt_path=auto", run="a"))
    train(composed_in("train", *every, "max_steps=4", run="b"))
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert_equal(a["state_dict"], b["state_dict"])
    names = [path.name for path in committed(tmp_path / "a/checkpoints")]
    assert names == ["step_0000004.ckpt", "step_0000002.ckpt"]
    files = {path.name for path in (tmp_path / "a/csv").glob("*.csv")}
    assert files == {"metrics.csv", "metrics_until_step_0000002.csv"}


def test_last_falls_back_and_a_named_file_never_does(
    composed_in: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(composed_in("train", *QUICK, "max_steps=2", "save_every=1", run="a"))
    newest = tmp_path / "a/checkpoints/step_0000002.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    caplog.set_level(logging.WARNING)
    found = found_for(composed_in("train", *QUICK, "ckpt_path=last"))
    assert found is not None and found.endswith("step_0000001.ckpt")
    assert "step_0000002.ckpt is damaged" in caplog.text
    with pytest.raises(ValueError, match="is damaged: .* bytes in place of"):
        found_for(composed_in("train", *QUICK, f"ckpt_path={newest}"))


def test_a_run_without_a_good_checkpoint_goes_back_to_the_run_it_came_from(
    composed_in: Compose, tmp_path: Path
) -> None:
    train(composed_in("train", *QUICK, "max_steps=1", run="a"))
    train(composed_in("train", *QUICK, "max_steps=2", "ckpt_path=last", run="b"))
    (only,) = committed(tmp_path / "b/checkpoints")
    only.write_bytes(b"")
    found = found_for(composed_in("train", *QUICK, "ckpt_path=last"))
    assert found == str(tmp_path / "a/checkpoints/step_0000001.ckpt")


def test_changed_optimiser_settings_act_from_the_first_step_on(
    composed_in: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A constant rate of 1e-3, resumed with another rate, decay and betas."""
    first = (*QUICK, "optim.decay=constant", "optim.warmup_steps=0", "optim.lr=1e-3")
    train(composed_in("train", *first, "max_steps=2", run="a"))
    new = ("optim.lr=1e-5", "optim.weight_decay=0.3", "optim.betas=[0.5,0.6]")
    saved = f"ckpt_path={tmp_path / 'a/checkpoints/last.ckpt'}"
    train(composed_in("train", *first, *new, "max_steps=4", saved, run="b"))
    with open(tmp_path / "b/csv/metrics.csv") as file:
        rows = [
            row for row in csv.DictReader(file) if any("lr-" in k and v for k, v in row.items())
        ]
    rates = {int(r["step"]): float(v) for r in rows for k, v in r.items() if "lr-" in k and v}
    assert rates == pytest.approx({2: 1e-5, 3: 1e-5}, rel=1e-9)
    groups = checkpoint(tmp_path / "b")["optimizer_states"][0]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert "resuming with other settings: " in caplog.text
    assert "optim.lr: 0.001 -> 1e-05; optim.weight_decay: 0.01 -> 0.3; " in caplog.text


def test_another_denoiser_cannot_be_resumed(composed_in: Compose, tmp_path: Path) -> None:
    train(composed_in("train", *QUICK, "max_steps=1", run="a"))
    saved = f"ckpt_path={tmp_path / 'a/checkpoints/last.ckpt'}"
    cfg = composed_in("train", *QUICK, "max_steps=2", saved, "noise=lognormal", run="a")
    before = (tmp_path / "a/config.yaml").read_text()
    with pytest.raises(ValueError, match="cannot resume with noise._target_: .* -> .*LogNormal"):
        train(cfg)
    assert (tmp_path / "a/config.yaml").read_text() == before


def test_resuming_a_finished_run_does_nothing_and_leaves_nothing(
    composed_in: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(composed_in("train", *QUICK, "max_steps=1", run="a"))
    (tmp_path / "b/.hydra").mkdir(parents=True)
    (tmp_path / "b/train.log").touch()
    assert train(composed_in("train", *QUICK, "max_steps=1", "ckpt_path=last", run="b")) is None
    assert "nothing left to do" in caplog.text and not (tmp_path / "b").exists()
    train(composed_in("train", *QUICK, "max_steps=1", "ckpt_path=auto", run="a"))
    assert (tmp_path / "a/summary.json").is_file()


def test_trials_are_never_picked_by_themselves(composed_in: Compose, tmp_path: Path) -> None:
    train(composed_in("train", *QUICK, "debug=quick", "max_steps=1", run="trial"))
    assert newest_checkpoint(tmp_path, stage="supir") is None
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        found_for(composed_in("train", *QUICK, "ckpt_path=last"))
    named = tmp_path / "trial/checkpoints/last.ckpt"
    assert found_for(composed_in("train", *QUICK, f"ckpt_path={named}")) == str(named.resolve())


def test_sigterm_ends_the_command_with_143_and_a_checkpoint(
    composed_in: Compose, tmp_path: Path
) -> None:
    cfg = composed_in("train", *QUICK, "max_steps=100000", "val_every=100000", run="a")
    OmegaConf.save(cfg, tmp_path / "cfg.yaml", resolve=True)
    code = (
        "import sys; from omegaconf import OmegaConf; from open_supir.commands.train import train; "
        "train(OmegaConf.load(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cfg.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        metrics = tmp_path / "a/csv/metrics.csv"
        wait_for(
            lambda: metrics.exists() and "train/loss" in metrics.read_text(),
            alive=lambda: process.poll() is None,
            what="the first loss",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    (saved,) = committed(tmp_path / "a/checkpoints")
    step = torch.load(saved, weights_only=True)["global_step"]
    assert step > 0 and json.loads((tmp_path / "a/summary.json").read_text())["step"] == step


def test_a_slurm_job_is_put_back_into_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="not a Slurm job"):
        requeue_slurm_job()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    requeue_slurm_job()
    assert (tmp_path / "called").read_text() == "requeue 17\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue_slurm_job()
    assert (tmp_path / "called").read_text() == "requeue 12_3\n"


def test_replay_does_a_recorded_step_again(
    composed_in: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 3 of a run that saved at step 2: same samples, same losses, same gradients."""
    watch = StepGuard._watch

    def alarmed(self: StepGuard, step: Any, found: Any) -> None:
        watch(self, step, found)
        if step.number == 3:
            self._record(step, found, "loss spike")

    monkeypatch.setattr(StepGuard, "_watch", alarmed)
    train(composed_in("train", *QUICK, "max_steps=4", "trainer.log_every_n_steps=1", run="a"))
    monkeypatch.setattr(StepGuard, "_watch", watch)
    (record,) = (tmp_path / "a/odd_steps").iterdir()
    recorded = json.loads(record.read_text())
    assert (
        recorded["step"] == 3 and recorded["micro_batches"][0]["loss"] == losses(tmp_path / "a")[3]
    )

    (tmp_path / "again").mkdir()
    replay(str(record), tmp_path / "again")
    report = json.loads((tmp_path / "again/replay.json").read_text())
    assert [s["seed"] for s in report["samples"]] == recorded["micro_batches"][0]["seeds"]
    mean = sum(s["loss"] for s in report["samples"]) / len(report["samples"])
    assert mean == pytest.approx(recorded["micro_batches"][0]["loss"], rel=1e-6)
    assert report["grad_norms"] == pytest.approx(recorded["grad_norms"], rel=1e-6)
    assert report["first_not_finite"] is None


def test_a_record_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="odd_steps"):
        replay(str(tmp_path / "none.json"), tmp_path)
