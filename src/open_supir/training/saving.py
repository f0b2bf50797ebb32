"""SaveCheckpoints: when checkpoints are written, and which ones are kept."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from open_supir.base.files import remove_leftovers, replacing
from open_supir.training.agreement import Ranks
from open_supir.training.checkpoint_io import (
    VerifiedCheckpointIO,
    committed,
)

LAST = "last.ckpt"


class SaveCheckpoints(Checkpoint):
    """Saves every `every` steps, at the last step, and when training is asked to stop.

    An older checkpoint is deleted only after the new one has its manifest, and `last.ckpt` always
    points to one that has a manifest.

    Args:
        dirpath: Folder of the checkpoints, `step_0001000.ckpt` and so on.
        keep: How many of the newest are kept.
        milestones: Checkpoints at multiples of this step are kept for good; None for no others.

    Raises:
        ValueError: `keep` is below 2 (a single one may be damaged), or a number is not positive.
    """

    def __init__(
        self, dirpath: str, *, every: int, keep: int = 2, milestones: int | None = None
    ) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep}: one of them may be damaged")
        if every < 1 or (milestones is not None and milestones < 1):
            raise ValueError(f"every and milestones must be positive, got {every}, {milestones}")
        self.folder = Path(dirpath)
        self.every, self.keep, self.milestones = every, keep, milestones
        self.saved_step = -1
        self.seconds = 0.0  # spent so far
        self.ranks = Ranks()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what a killed process left, and check that all ranks are at the same step.

        Raises:
            TypeError: Checkpoints would be written without manifests.
            RuntimeError: The ranks resumed from different checkpoints.
        """
        if not isinstance(trainer.strategy.checkpoint_io, VerifiedCheckpointIO):
            raise TypeError("SaveCheckpoints needs trainer.plugins=[VerifiedCheckpointIO]")
        self.saved_step = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            remove_leftovers(self.folder)
        self.ranks.join()
        step = float(trainer.global_step)
        newest, oldest = self.ranks.max(step, -step)
        if newest != -oldest:
            raise RuntimeError(
                f"ranks resumed from different steps, {-oldest:.0f} to {newest:.0f}: they do not "
                "see the same checkpoints. Use a shared folder, or set ckpt_path=FILE"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Save if a checkpoint is due."""
        step = trainer.global_step
        if step == self.saved_step:
            return  # within an accumulation, or already saved
        if step % self.every == 0 or step >= trainer.max_steps > 0 or trainer.should_stop:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> Path:
        """Write a checkpoint now and return its path; every rank must call this."""
        start = time.perf_counter()
        path = self.folder / f"step_{trainer.global_step:07d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            point_to(self.folder / LAST, path)
            for old in self._superfluous():
                trainer.strategy.remove_checkpoint(old)
        self.seconds += time.perf_counter() - start
        return path

    def _superfluous(self) -> list[Path]:
        """Return the checkpoints that are neither among the newest nor milestones."""
        kept = committed(self.folder)
        newest, older = kept[: self.keep], kept[self.keep :]
        older += [  # files whose writer was killed before the manifest
            path
            for path in self.folder.glob("step_*.ckpt")
            if path not in newest and path not in older
        ]
        return [path for path in older if not self._is_milestone(path)]

    def _is_milestone(self, path: Path) -> bool:
        step = path.stem.removeprefix("step_")
        return self.milestones is not None and step.isdigit() and int(step) % self.milestones == 0


def point_to(link: Path, target: Path) -> None:
    """Atomically make `link` a symbolic link to a file in the same folder."""
    with replacing(link, fsync=False) as temporary:
        temporary.symlink_to(target.name)
