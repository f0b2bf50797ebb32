"""What the degradation did, in a run's logs."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from open_supir.base.images import to_signed
from open_supir.degradation import DegradationParams, DegradationPipeline


class DegradationLog(pl.Callback):
    """Logs histograms of the parameters drawn, and how far LQ is from HQ.

    Between two figures only the seeds are kept: parameters are drawn from them again, all at once,
    and LQ is made again for the last batch. So training steps do nothing for the log, and the
    device is read once in `every` steps. Modules without a `DegradationPipeline` log nothing.

    Args:
        every: Steps between two figures.
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
        """Log, every so many steps, on the first rank."""
        degradation = pipeline_of(pl_module)
        if degradation is None or not trainer.is_global_zero:
            return
        self.seeds.append(batch["seed"])
        if (batch_idx + 1) % self.every:
            return
        hq = to_signed(batch["hq"])
        params = degradation.draw(torch.cat(self.seeds), size=(hq.shape[-2], hq.shape[-1]))
        self.seeds.clear()
        lq = degradation(hq, batch["seed"])
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


def pipeline_of(module: Any) -> DegradationPipeline | None:
    """Return a module's degradation, if it has one whose parameters can be drawn again."""
    degradation = getattr(module, "degradation", None)
    return degradation if isinstance(degradation, DegradationPipeline) else None


def describe(module: Any, batch: Mapping[str, Any]) -> list[str]:
    """Return one line a sample: what `module` does to make its LQ; nothing if it makes none."""
    degradation = pipeline_of(module)
    if degradation is None:
        return []
    height, width = batch["hq"].shape[-2:]
    summaries = degradation.draw(batch["seed"], size=(height, width)).summaries()
    return [f"{row}: {line}" for row, line in enumerate(summaries, start=1)]


def as_table(params: DegradationParams) -> str:
    """Return the shares of each choice as a Markdown table."""
    lines = [f"| {len(params)} samples | |", "|---|---|"]
    for name, shares in params.shares().items():
        words = ", ".join(f"{option} {share:.1%}" for option, share in shares.items())
        lines.append(f"| {name} | {words} |")
    return "\n".join(lines)
