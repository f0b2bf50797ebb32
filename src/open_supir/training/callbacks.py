"""What the user watches during training: a progress bar and validation pictures."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from open_supir.base.files import write_text
from open_supir.base.images import to_uint8
from open_supir.base.images.tensors import image_grid
from open_supir.base.images.write import write_image
from open_supir.training.degradation_log import describe

log = logging.getLogger(__name__)


class ValidationPictures(pl.Callback):
    """Writes and logs a grid of the first validation images, one row per image.

    The module's `pictures(batch)` supplies the columns. A text file next to the PNG has one line
    per row: how its LQ was made, and its caption.

    Args:
        dirpath: Folder of the PNG files, named by step.
    """

    def __init__(self, dirpath: str, num_images: int) -> None:
        self.dirpath = Path(dirpath)
        self.num_images = num_images

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the grid of the first batch."""
        # All ranks must run a sharded network together.
        takes_part = trainer.is_global_zero or getattr(pl_module, "is_sharded", False)
        if batch_idx or trainer.sanity_checking or not takes_part:
            return
        batch = first_rows(batch, self.num_images)
        with trainer.precision_plugin.val_step_context():  # hooks run outside autocast
            columns: dict[str, Tensor] = pl_module.pictures(batch)
        if not trainer.is_global_zero:
            return
        rows = [list(images) for images in zip(*columns.values(), strict=True)]
        grid = to_uint8(image_grid(rows))
        path = self.dirpath / f"step_{trainer.global_step:07d}.png"
        write_image(path, grid, record={"columns": " | ".join(columns)})
        degraded = ["own LQ"] * len(rows) if "lq" in batch else describe(pl_module, batch)
        lines = [
            f"{line} | {caption}" for line, caption in zip(degraded, batch["caption"], strict=False)
        ]
        if lines:
            write_text(path.with_suffix(".txt"), "\n".join(lines) + "\n", fsync=False)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer, step = logger.experiment, trainer.global_step
                writer.add_image(f"val/{' | '.join(columns)}", grid, step)
                if lines:
                    writer.add_text("val/degradation", "\n\n".join(lines), step)
            elif hasattr(logger, "log_image"):  # Weights & Biases; MLflow gets the file
                wandb: Any = logger
                wandb.log_image("val/pictures", [str(path)], caption=["\n".join(lines)])
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, str(path), "pictures")


class EagerValidation(pl.Callback):
    """Runs validation without `torch.compile`.

    Its shapes are others than those of training, and compiling whole networks for them takes
    minutes, which a few held-out images do not give back.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let compiled networks run as they are written."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let them run compiled again."""
        torch.compiler.set_stance("default")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no trace in this process."""
        torch.compiler.set_stance("default")


class TrainingProgress(ProgressBar):
    """A bar with steps, loss, images per second and time left; without a terminal, log lines.

    Args:
        log_every_s: Seconds between two log lines without a terminal.
    """

    def __init__(self, log_every_s: float = 30.0) -> None:
        super().__init__()
        self.log_every_s = log_every_s
        self._bar: Progress | None = None
        self._logged = 0.0

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all ranks but the first."""
        self.log_every_s = float("inf")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, at the step that a resumed run starts from."""
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
            refresh_per_second=4,
            transient=True,
        )
        self._bar.add_task(
            "train", total=trainer.max_steps, completed=trainer.global_step, loss="-", rate="-"
        )
        self._start_step, self._start = trainer.global_step, time.perf_counter()
        self._logged = self._start
        if self._bar.console.is_terminal and self.log_every_s != float("inf"):
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance; the loss is read from the device at most twice a second."""
        now = time.perf_counter()
        wait = 0.5 if self._live else self.log_every_s
        if self._bar is None or (
            now - self._logged < wait and trainer.global_step < trainer.max_steps
        ):
            return
        self._logged = now
        metrics = trainer.callback_metrics
        loss = f"{float(metrics.get('train/loss', float('nan'))):.4f}"
        rate = (
            f"{float(metrics['perf/images_per_s']):.1f}" if "perf/images_per_s" in metrics else "-"
        )
        if self._live:
            self._bar.update(
                self._bar.task_ids[0], completed=trainer.global_step, loss=loss, rate=rate
            )
            return
        done = max(1, trainer.global_step - self._start_step)
        left = (trainer.max_steps - trainer.global_step) * (now - self._start) / done
        log.info(
            "step %d/%d  loss %s  %s images/s  %.0f s left",
            trainer.global_step,
            trainer.max_steps,
            loss,
            rate,
            left,
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the validation figures."""
        if trainer.sanity_checking or self.log_every_s == float("inf"):
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        log.info(
            "step %d  %s",
            trainer.global_step,
            "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def _live(self) -> bool:
        return self._bar is not None and self._bar.live.is_started


def first_rows(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the first `count` samples of a batch."""
    return {name: values[:count] for name, values in batch.items()}
