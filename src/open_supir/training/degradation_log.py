"""Logs what the degradation did during a run."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from open_supir.base.images import to_signed
from open_supir.degradation import DegradationParams, DegradationPipeline
from open_supir.training.trained_parts import lq_of


class DegradationLog(pl.Callback):
    """Logs histograms of the drawn parameters, and the distance of LQ from HQ.

    Training steps only keep their seeds. Every `every` batches, all parameters are drawn from them
    again at once, LQ is remade for the last batch, and the device is read once. Modules
    without a `DegradationPipeline` log nothing.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.seeds: list[Tensor] = []

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Log every `every` batches, on the first rank."""
        degradation = pipeline_of(pl_module)
        if degradation is None or not trainer.is_global_zero:
            return
        self.seeds.append(degraded_seeds(batch))
        if (batch_idx + 1) % self.every:
            return
        seeds = torch.cat(self.seeds)
        self.seeds.clear()
        if not len(seeds):  # real pairs alone
            return
        hq = to_signed(batch["hq"])
        params = degradation.draw(seeds, size=(hq.shape[-2], hq.shape[-1]))
        lq = lq_of(batch, hq, degradation)
        numbers = params.numbers()
        metrics = {"degradation/not_finite": (~hq.isfinite()).sum() + (~lq.isfinite()).sum()}
        if lq.shape == hq.shape:
            error = ((lq - hq) / 2).square().mean(dim=(1, 2, 3))
            numbers["psnr"] = -10 * error.clamp_min(1e-10).log10()
            metrics["degradation/psnr"] = numbers["psnr"].mean()
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in metrics.items()}, step)
            if isinstance(logger, TensorBoardLogger):
                for name, values in numbers.items():
                    if len(values):
                        logger.experiment.add_histogram(f"degradation/{name}", values, step)
                logger.experiment.add_text("degradation/shares", as_table(params), step)


def degraded_seeds(batch: Mapping[str, Any]) -> Tensor:
    """Return the seeds of the samples that are degraded: all but real pairs."""
    return batch["seed"][~batch["paired"].cpu()] if "paired" in batch else batch["seed"]


def pipeline_of(module: Any) -> DegradationPipeline | None:
    """Return a module's degradation if its parameters can be drawn again, else None."""
    degradation = getattr(module, "degradation", None)
    return degradation if isinstance(degradation, DegradationPipeline) else None


def describe(module: Any, batch: Mapping[str, Any]) -> list[str]:
    """Return one line per sample that says how `module` makes its LQ; none if it makes no LQ."""
    degradation = pipeline_of(module)
    if degradation is None:
        return []
    height, width = batch["hq"].shape[-2:]
    summaries = degradation.draw(batch["seed"], size=(height, width)).summaries()
    return [f"{row}: {line}" for row, line in enumerate(summaries, start=1)]


def as_table(params: DegradationParams) -> str:
    """Return how often each option was chosen, as a Markdown table."""
    lines = [f"| {len(params)} samples | |", "|---|---|"]
    for name, shares in params.shares().items():
        words = ", ".join(f"{option} {share:.1%}" for option, share in shares.items())
        lines.append(f"| {name} | {words} |")
    return "\n".join(lines)
