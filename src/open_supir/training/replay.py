"""Replay: repeats a recorded step of a run and reports what happened in it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from open_supir.base.files import write_text
from open_supir.base.run_folders import read_config
from open_supir.training.checkpoint_io import committed, read_manifest
from open_supir.training.verdict import parts_of, squared_norms

log = logging.getLogger(__name__)


def prepare_replay(path: Path, run_dir: Path) -> tuple[dict[str, Any], "ReplayStep", str | None]:
    """Return the configuration, callback and checkpoint with which to repeat a recorded step.

    Args:
        run_dir: Folder for the replay's own run.

    Raises:
        FileNotFoundError: The record or the run's configuration does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"replay={path}: no such file; records are in runs/*/*/odd_steps")
    record = json.loads(path.read_text(encoding="utf-8"))
    run = Path(record["run"])
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} belongs to the run {run}, which has no config.yaml")
    before = [
        checkpoint
        for checkpoint in committed(run / "checkpoints")
        if (manifest := read_manifest(checkpoint)) and manifest["step"] <= record["step"]
    ]
    start = str(before[0]) if before else read_config(run)["ckpt_path"]
    words = "replaying step %d of %s from %s"
    log.info(words, record["step"], run, start or "the beginning: no checkpoint is older")
    step = ReplayStep(record, run_dir / "replay.json")
    return _config_of_replay(run, record, run_dir), step, start


def _config_of_replay(run: Path, record: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return a run's configuration, changed to repeat the recorded step on one device."""
    cfg = read_config(run)
    cfg["trainer"] |= {
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "accumulate_grad_batches": 1,
        "max_steps": record["step"] + 1,
        "limit_val_batches": 0,
        "default_root_dir": str(run_dir),
    }
    cfg["data"]["micro_batch"] = len(record["micro_batches"][0]["keys"])
    never = {"dirpath": str(run_dir / "odd_steps"), "stop_after": 10**9}
    callbacks = cfg["callbacks"]
    cfg["callbacks"] = {
        "guard": callbacks["guard"] | never,
        "progress": callbacks["progress"],
    }
    return cfg | {"logger": {}}


class ReplayStep(pl.Callback):
    """Reports a recorded step: losses of each sample, gradient norms, and the first output that is
    not finite.

    Args:
        record: What `StepGuard` wrote.
    """

    def __init__(self, record: Mapping[str, Any], path: str | Path) -> None:
        self.record, self.path = record, Path(path)
        self.report: dict[str, Any] = {"step": record["step"], "samples": [], "grad_norms": {}}
        self._hooks: list[Any] = []
        self._first: str | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch every module's output in the recorded step."""
        if trainer.global_step != self.record["step"] or self._hooks:
            return
        for name, module in pl_module.named_modules():
            if name:
                self._hooks.append(module.register_forward_hook(self._watch(name)))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Record the gradient norms of the recorded step, before the guard drops the gradients."""
        if trainer.global_step == self.record["step"]:
            squares, _ = squared_norms(parts_of(pl_module))
            self.report["grad_norms"] = {k: float(v.sqrt()) for k, v in squares.items()}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Record the losses of the recorded step's samples."""
        if not self._hooks:
            return
        losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
        sigmas = outputs.get("sigma") if isinstance(outputs, Mapping) else None
        for row, key in enumerate(batch["key"]):
            self.report["samples"].append(
                {
                    "key": key,
                    "source": batch["source"][row],
                    "seed": int(batch["seed"][row]),
                    "loss": None if losses is None else float(losses[row]),
                    "sigma": None if sigmas is None else float(sigmas[row]),
                }
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report."""
        for hook in self._hooks:
            hook.remove()
        self.report["first_not_finite"] = self._first
        self.report["recorded"] = dict(self.record)
        write_text(self.path, json.dumps(self.report, indent=2) + "\n")
        for sample in self.report["samples"]:
            log.info("%(source)s %(key)s seed %(seed)s: sigma %(sigma)s, loss %(loss)s", sample)
        log.info("gradient norms: %s", self.report["grad_norms"])
        log.info("recorded:       %s", self.record["grad_norms"])
        log.info("first output that is not finite: %s", self._first or "none")
        log.info("report: %s", self.path)

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._first is None and isinstance(output, Tensor) and output.is_floating_point():
                if not bool(torch.isfinite(output).all()):
                    self._first = f"{name} ({type(module).__name__})"

        return hook
