"""Monitoring of a run: speed, waiting for data, memory, losses by kind of sample, skips."""

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from open_supir.base.upload import upload
from open_supir.data.counters import REASONS, LoaderCounters
from open_supir.training.agreement import Ranks
from open_supir.training.flops import step_flops

# Dense bf16 matrix rate in TFLOP/s, by part of the device's name (vendors' data sheets).
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


class Throughput(pl.Callback):
    """Logs images per second, the share of time spent waiting for data, peak memory and MFU.

    FLOPs are counted once, on networks without memory (flops.py); MFU is their rate divided by the
    device's peak. Lightning's ThroughputMonitor knows nothing of data waits and validation, and its
    peaks for newer cards include sparsity, which would halve the MFU.

    Args:
        peak_tflops: Peak rate of one device; None looks it up by the device's name, and logs no MFU
            if that is unknown.
    """

    def __init__(self, every: int, *, peak_tflops: float | None = None) -> None:
        self.every, self.peak_tflops = every, peak_tflops
        self.images = 0
        self.waited = 0.0
        self.since = self.last_end = 0.0
        self.saved = 0.0  # seconds that checkpoints had taken when last looked
        self.tflop_per_image: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._saving(trainer)
        self.since = self.last_end = time.perf_counter()
        if self.peak_tflops is None and pl_module.device.type == "cuda":
            device = torch.cuda.get_device_name(pl_module.device)
            known = [rate for name, rate in PEAK_TFLOPS.items() if name in device]
            self.peak_tflops = known[0] if known else None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the last step as waiting, except for saving a checkpoint."""
        saving = self._saving(trainer)
        self.waited += time.perf_counter() - self.last_end - saving
        self.since += saving
        if self.tflop_per_image is None and trainer.is_global_zero:
            start = time.perf_counter()
            recipe: Any = pl_module.recipe
            self.tflop_per_image = step_tflop(recipe, crop=batch["hq"].shape[-1])
            self.since += time.perf_counter() - start

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the images; log every `every` steps."""
        self.images += len(batch["hq"]) * trainer.world_size
        self.last_end = time.perf_counter()
        if trainer.global_step % self.every or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        elapsed = self.last_end - self.since
        rate = self.images / elapsed
        figures = {"perf/images_per_s": rate, "perf/data_wait": self.waited / elapsed}
        figures["perf/peak_memory_gb"] = peak_memory_gb(pl_module.device)
        if self.tflop_per_image:
            tflops = rate * self.tflop_per_image / trainer.world_size
            figures["perf/tflops_per_device"] = tflops
            if self.peak_tflops:
                figures["perf/mfu"] = tflops / self.peak_tflops
        pl_module.log_dict(figures, rank_zero_only=True)
        self.images, self.waited, self.since = 0, 0.0, self.last_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation out of the figures."""
        self._saving(trainer)
        self.images, self.waited = 0, 0.0
        self.since = self.last_end = time.perf_counter()

    def _saving(self, trainer: pl.Trainer) -> float:
        """Return the seconds that checkpoints took since the last call."""
        total = sum(getattr(saver, "seconds", 0.0) for saver in trainer.checkpoint_callbacks)
        before, self.saved = self.saved, total
        return total - before


class LossBreakdown(pl.Callback):
    """Logs the loss by noise level, by source and for negative samples, over all ranks.

    Uses what a training step returns besides its loss: `losses` (B,) and, in stage 2, `sigma` (B,).
    Sums stay on the device between two logs.

    Args:
        every: Steps between two logs; each covers all samples since the last one.
        edges: Noise levels between the bins.
    """

    def __init__(self, every: int, edges: Sequence[float] = (0.1, 0.3, 1.0, 3.0)) -> None:
        self.every, self.edges = every, tuple(edges)
        self.ranks = Ranks()
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the groups: noise level bins, sources, negative and positive samples."""
        self.ranks.join()
        bounds = [0.0, *self.edges, float("inf")]
        bins = [f"sigma/{a:g}-{b:g}" for a, b in zip(bounds, bounds[1:], strict=False)]
        self._sources = sorted(getattr(trainer.datamodule, "all_sources", dict)())  # type: ignore[attr-defined]
        sources = [f"source/{name}" for name in self._sources]
        self._names = [*bins, *sources, "negative", "positive"]
        device = pl_module.device
        self._sums = torch.zeros(2, len(self._names), device=device)
        self._edges = torch.tensor(self.edges, device=device)
        self._bins = torch.arange(len(bins), device=device)

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Add a batch; log every `every` steps."""
        if not isinstance(outputs, Mapping) or "losses" not in outputs or self._sums is None:
            return
        losses = outputs["losses"].float()
        if "sigma" in outputs:
            index = torch.bucketize(outputs["sigma"], self._edges, right=True)
            by_sigma = (index[:, None] == self._bins).float()
        else:
            by_sigma = losses.new_zeros(len(losses), len(self._bins))
        rows = [[source == name for name in self._sources] for source in batch["source"]]
        by_source = upload({"rows": torch.tensor(rows).float()}, losses.device)["rows"]
        negative = batch["is_negative"].to(losses)[:, None]
        known = losses.isfinite()
        member = torch.cat([by_sigma, by_source, negative, 1 - negative], dim=1) * known[:, None]
        losses = losses.where(known, 0.0)
        self._sums += torch.stack([losses @ member, member.sum(dim=0)])
        if trainer.global_step % self.every or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        totals = self.ranks.sum(*self._sums.flatten().tolist())
        self._sums.zero_()
        count = len(self._names)
        figures = {
            f"train/loss_by/{name}": totals[i] / totals[count + i]
            for i, name in enumerate(self._names)
            if totals[count + i]
        }
        for logger in trainer.loggers:  # pyright: ignore[reportOptionalIterable]
            logger.log_metrics(figures, trainer.global_step - 1)


class DataCounters(pl.Callback):
    """Logs how many samples were trained on and how many were skipped, by reason, over all ranks.

    Skips and shortened captions are counted when a worker reads them, a few batches ahead.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.ranks = Ranks()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the group of all ranks."""
        self.ranks.join()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Log every `every` steps."""
        counters: LoaderCounters | None = getattr(trainer.datamodule, "counters", None)  # type: ignore[attr-defined]
        if counters is None or trainer.global_step % self.every:
            return
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        skips = counters.skips.sum(dim=0).tolist()  # of this rank, (sources, reasons)
        counts = {
            "captions_truncated": int(counters.truncated.sum()),
            "skipped": sum(map(sum, skips)),
        }
        for source, row in zip(counters.sources, skips, strict=True):
            for reason, count in zip(REASONS, row, strict=True):
                counts[f"skipped/{source}/{reason}"] = count
        totals = self.ranks.sum(*counts.values())
        figures = zip(counts, totals, strict=True)
        shown = {f"data/{name}": n for name, n in figures if n or not name.startswith("skipped/")}
        shown["data/samples"] = float(trainer.global_step * trainer.datamodule.global_batch)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics(shown, trainer.global_step - 1)


def step_tflop(recipe: Mapping[str, Any], *, crop: int) -> float:
    """Return the TFLOP of one sample's training step; 0 for stages that cannot be counted."""
    if "architecture" not in recipe:
        return 0.0
    flops = step_flops(recipe["architecture"], stage=recipe["stage"], crop=crop)
    return 0.0 if flops is None else (flops.trained + flops.frozen) / 1e12


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory so far in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
