"""The real command: signals, automatic resume, requeueing, replay of an odd step."""

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

    def alarmed(self: StepGuard, trainer: Any, loss: float, norms: Any) -> None:
        watch(self, trainer, loss, norms)
        if trainer.global_step == 3:
            self._record(trainer, "loss spike", norms)

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
