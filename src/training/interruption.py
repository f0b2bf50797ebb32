"""Interruption: ctrl-C and SIGTERM end training after the current step, with a checkpoint."""

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger(__name__)

INTERRUPTED_EXIT = 130  # what a shell reports for a program ended by ctrl-C


class StopOnSignal(pl.Callback):
    """Turns the first SIGINT or SIGTERM into a flag, acted on at the end of the step.

    A second ctrl-C ends the program at once.

    Args:
        dirpath: Folder that `last.ckpt` is saved to.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Save and stop, once a signal has come and the optimiser step is complete."""
        if self.received is None or trainer.should_stop:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        trainer.save_checkpoint(self.path)
        trainer.should_stop = True
        log.warning(
            "%s: stopped after step %d, saved %s; go on with ckpt_path=last",
            self.received.name,
            trainer.global_step,
            self.path,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
