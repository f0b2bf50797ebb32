"""BestSnapshot: which checkpoint is best by a full-reference and a no-reference metric together."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from open_supir.base.files import write_text
from open_supir.training.saving import point_to

log = logging.getLogger(__name__)

BEST = "best.ckpt"


class BestSnapshot(pl.Callback):
    """After each validation, points `best.ckpt` to the best checkpoint so far.

    Either metric alone can be had cheaply: blur pleases the one, noise the other. So snapshots are
    ranked by each, and the smallest sum of ranks wins; the full-reference metric decides ties.
    `best.json` holds both values of every snapshot.

    Args:
        dirpath: Folder of the checkpoints; those of validated steps must be kept.
        full_reference, no_reference: Names of logged metrics.
        higher_is_better: By metric.
    """

    def __init__(
        self,
        dirpath: str,
        *,
        full_reference: str,
        no_reference: str,
        higher_is_better: Mapping[str, bool],
    ) -> None:
        self.folder = Path(dirpath)
        self.metrics = (full_reference, no_reference)
        self.higher = {name: higher_is_better[name] for name in self.metrics}
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the checkpoint of this step, if there is one, and choose again."""
        path = self.folder / f"step_{trainer.global_step:07d}.ckpt"
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not path.is_file():
            return
        values = {name: float(trainer.callback_metrics[name]) for name in self.metrics}
        before = [row for row in self.rows if row["step"] != trainer.global_step]
        self.rows = [*before, {"step": trainer.global_step, **values}]
        best = self.best()
        target = self.folder / f"step_{int(best['step']):07d}.ckpt"
        if target.is_file():  # it is in an earlier folder if the run was resumed in a new one
            point_to(self.folder / BEST, target)
        said = {"best": best, "higher_is_better": self.higher, "snapshots": self.rows}
        write_text(self.folder / "best.json", json.dumps(said, indent=1) + "\n")
        log.info("best so far: step %d", best["step"])

    def best(self) -> dict[str, float]:
        """Return the row with the smallest sum of ranks."""

        def rank(row: Mapping[str, float], name: str) -> int:
            sign = 1 if self.higher[name] else -1
            return sum(sign * other[name] > sign * row[name] for other in self.rows)

        return min(
            self.rows,
            key=lambda row: (
                sum(rank(row, name) for name in self.metrics),
                rank(row, self.metrics[0]),
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the resumed run."""
        self.rows = list(state_dict["rows"])
