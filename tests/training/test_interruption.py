"""Ctrl-C: training stops after the step, saves, and resumes from there."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from open_supir.training.checkpoint_io import VerifiedCheckpointIO
from open_supir.training.interruption import StopOnSignal
from open_supir.training.saving import SaveCheckpoints


class Toy(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        raise AssertionError("a scheduler that sent a signal does not wait for a validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_first_ctrl_c_saves_after_the_step_and_stops(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop, save = StopOnSignal(), SaveCheckpoints(str(tmp_path), every=1000)
    trainer = pl.Trainer(
        max_steps=50, accelerator="cpu", logger=False,
        enable_progress_bar=False, callbacks=[stop, save], enable_model_summary=False,
        plugins=[VerifiedCheckpointIO()], num_sanity_val_steps=0,
    )  # fmt: skip
    batches = DataLoader(torch.randn(64, 2), batch_size=1)
    trainer.fit(Toy(), batches, batches)
    assert stop.received == signal.SIGINT and stop.exit_code == 130
    assert trainer.global_step == 4
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert signal.getsignal(signal.SIGINT) is before
