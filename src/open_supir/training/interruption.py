"""Interruption: after a signal, all ranks stop at the end of the same step, with a checkpoint.

Lightning 2.6 communicates with the other ranks inside its signal handler, which races with the
collectives of the step: two ranks that get SIGTERM hang more often than not. Here, a handler only
records the signal, and the ranks agree at the end of each step.
"""

import logging
import os
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from open_supir.training.agreement import Ranks

log = logging.getLogger(__name__)

# Ctrl-C, and what schedulers send before they kill (Slurm's --signal is often USR1 or USR2).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(pl.Callback):
    """Stops all ranks at the end of the step when any rank gets a signal.

    `SaveCheckpoints` notices that training is to stop, and writes the checkpoint. A second ctrl-C
    ends the program at once.

    Attributes:
        received: The signal that stopped training, the same on every rank; None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.ranks = Ranks()
        self._noted: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Disable Lightning's signal handlers, and install ours for training.

        Lightning has no switch for them, nor for the broadcast before every batch that belongs to
        them and waits for the device.
        """
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if stage == "fit":
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the group of all ranks."""
        self.ranks.join()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Stop once any rank has a signal and the optimiser step is complete."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        number = int(self.ranks.max(self._noted or 0)[0])
        if number and self.received is None:
            self.received = signal.Signals(number)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # the little time left is for the checkpoint
            log.warning(
                "%s: stopping after step %d with a checkpoint; resume with ckpt_path=last",
                self.received.name,
                trainer.global_step,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def exit_code(self) -> int | None:
        """The exit code for the signal, as a shell reports it: 130 for ctrl-C, 143 for SIGTERM;
        None if there was no signal.
        """
        return None if self.received is None else 128 + self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._noted = signal.Signals(number)


def requeue_slurm_job() -> None:
    """Requeue this Slurm job, which then resumes with `ckpt_path=auto`.

    Raises:
        ValueError: This is not a Slurm job.
        subprocess.CalledProcessError: Slurm refused.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise ValueError("requeue=true, but SLURM_JOB_ID is not set: this is not a Slurm job")
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else job
    log.info("requeueing Slurm job %s", job)
    subprocess.run(["scontrol", "requeue", job], check=True)


def end_if_interrupted(trainer: pl.Trainer, *, requeue: bool) -> None:
    """Exit with the signal's exit code if a signal stopped training.

    Raises:
        SystemExit: 130 for ctrl-C, 143 for SIGTERM, and so on.
    """
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, StopOnSignal) and callback.exit_code is not None:
            if requeue and trainer.is_global_zero and callback.received != signal.SIGINT:
                requeue_slurm_job()
            trainer.strategy.barrier("end")  # launchers kill the other ranks once one exits
            raise SystemExit(callback.exit_code)
