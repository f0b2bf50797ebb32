"""Train a stage: experiment=robust_encoder, then experiment=zerosft.

Composes, builds, loads the base weights and fits. What a step does is in training/*_module.py.
"""

import json
import logging
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command
from open_supir.base.places import CONF
from open_supir.base.run_folders import write_config, write_summary
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.precomputed import recipe_of
from open_supir.networks.switches import checkpoint_activations, compile_networks
from open_supir.training import SupirModule
from open_supir.training.base_weights import load_base_weights
from open_supir.training.checkpoint_io import committed, read_manifest
from open_supir.training.interruption import StopOnSignal, requeue_slurm_job
from open_supir.training.replay import ReplayStep
from open_supir.training.resume import resolve_checkpoint
from open_supir.training.topology import keep_global_batch
from open_supir.training.trained_parts import TrainedParts

log = logging.getLogger(__name__)

# What rebuilds the networks without the run's configuration; networks/build.py reads it.
ARCHITECTURE = ("unet", "control", "connector", "vae", "conditioner", "denoiser")


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment; returns its last validation loss or PSNR, for sweepers."""
    if cfg.replay is not None:
        return replay(cfg.replay, Path(cfg.run_dir))
    if OmegaConf.is_missing(cfg, "name"):
        known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
        raise ValueError(f"name an experiment, as experiment=zerosft; known: {', '.join(known)}")
    return train(cfg)


class Run(NamedTuple):
    """What a configuration builds."""

    module: TrainedParts
    datamodule: RestorationDataModule
    trainer: pl.Trainer
    recipe: dict[str, Any]


def train(cfg: DictConfig) -> float | None:
    """Run one experiment into its run folder."""
    quieten_lightning()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = Path(cfg.run_dir)
    cfg.ckpt_path = resumed = resolve_checkpoint(cfg)
    if rank_zero_only.rank == 0:
        write_config(run_dir, cfg)
    log.info("%s into %s", cfg.name, run_dir)
    keep_earlier_metrics(run_dir, resumed)
    module, datamodule, trainer, recipe = build(cfg)
    for logger in trainer.loggers:
        logger.log_hyperparams(_plain(cfg))

    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    log.info("%.2fM parameters, of which %.2fM are trained", total / 1e6, trained / 1e6)
    untrained = {} if resumed else trainer.validate(module, datamodule, verbose=False)[0]
    start = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=resumed, weights_only=True)
    seconds = time.perf_counter() - start

    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        write_summary(
            run_dir,
            {
                "experiment": cfg.name,
                "stage": cfg.stage,
                "step": trainer.global_step,
                "seconds": round(seconds, 1),
                "parameters": total,
                "trained_parameters": trained,
                "weights": recipe["weights"],
                "resumed": resumed,
                **metrics,
                **{f"{name}_untrained": float(value) for name, value in untrained.items()},
            },
        )
    for name, value in untrained.items():
        if name in metrics:  # not so where a signal came before the first validation
            log.info(
                "%s: %.4f untrained, %.4f after %d steps",
                name,
                value,
                metrics[name],
                trainer.global_step,
            )
    end_if_interrupted(trainer, requeue=cfg.requeue)
    return metrics.get("val/loss", metrics.get("val/psnr"))


def build(cfg: DictConfig, *extra: pl.Callback) -> Run:
    """Build module, data and trainer, and load the base weights.

    Args:
        cfg: Of the run.
        extra: Callbacks beside the configured ones, called before them.
    """
    architecture = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ARCHITECTURE}
    recipe: dict[str, Any] = {
        "stage": cfg.stage,
        "architecture": architecture,
        "sampler": _values(cfg.sampler),
        "options": _values(cfg.options),
        "weights": {},
        "commit": git_commit(),
    }
    module = instantiate(cfg.module, recipe=recipe, _convert_="all")
    recipe["weights"] = load_base_weights(module, cfg)
    module.recipe = recipe
    datamodule: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    if datamodule.precomputed and isinstance(module, SupirModule):
        size = datamodule.sample_reader.crop_size
        made_by = {"latents": recipe_of(module.vae, size=size)}
        datamodule.recipes = made_by | {"text": recipe_of(module.conditioner)}
    if cfg.channels_last:
        module.to(memory_format=torch.channels_last)
    checkpoint_activations(module, cfg.checkpointing)
    compile_networks(module, cfg.compile)
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
    loggers = [instantiate(c, _convert_="all") for c in cfg.logger.values() if c]
    trainer: pl.Trainer = instantiate(
        cfg.trainer, callbacks=[*extra, *callbacks], logger=loggers, _convert_="all"
    )
    keep_global_batch(
        trainer, global_batch=datamodule.global_batch, micro_batch=datamodule.micro_batch
    )
    return Run(module, datamodule, trainer, recipe)


def replay(record_path: str, run_dir: Path) -> None:
    """Do a recorded step of a run again, on one device, from its last checkpoint before that step.

    Raises:
        FileNotFoundError: The record, its run or a checkpoint from before the step is not there.
    """
    path = Path(record_path)
    if not path.is_file():
        raise FileNotFoundError(f"replay={path}: no such file; records lie in runs/*/*/odd_steps")
    record = json.loads(path.read_text(encoding="utf-8"))
    run = Path(record["run"])
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is of the run {run}, which has no config.yaml any more")
    cfg: Any = OmegaConf.load(run / "config.yaml")
    before = [
        checkpoint
        for checkpoint in committed(run / "checkpoints")
        if (manifest := read_manifest(checkpoint)) and manifest["step"] <= record["step"]
    ]
    start = str(before[0]) if before else cfg.ckpt_path
    log.info(
        "step %d of %s again, from %s", record["step"], run, start or "the beginning: no checkpoint"
    )
    quieten_lightning()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    on_one_device = {"devices": 1, "num_nodes": 1, "strategy": "auto", "accumulate_grad_batches": 1}
    cfg.trainer.update({**on_one_device, "max_steps": record["step"] + 1, "limit_val_batches": 0})
    cfg.trainer.default_root_dir = str(run_dir)
    cfg.data.micro_batch = len(record["micro_batches"][0]["keys"])
    cfg.logger = {}
    guard: Any = cfg.callbacks.guard
    guard.update({"dirpath": str(run_dir / "odd_steps"), "stop_after": 10**9})
    cfg.callbacks = {"guard": guard, "progress": cfg.callbacks.progress}
    look = ReplayStep(record, run_dir / "replay.json")
    module, datamodule, trainer, _ = build(cfg, look)
    trainer.fit(module, datamodule, ckpt_path=start, weights_only=True)


def end_if_interrupted(trainer: pl.Trainer, *, requeue: bool) -> None:
    """Leave with the signal's exit code, if one stopped training.

    Raises:
        SystemExit: 130 for ctrl-C, 143 for SIGTERM, and so on.
    """
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, StopOnSignal) and callback.exit_code is not None:
            if requeue and trainer.is_global_zero and callback.received != signal.SIGINT:
                requeue_slurm_job()
            trainer.strategy.barrier("end")  # a launcher ends the others once one rank has ended
            raise SystemExit(callback.exit_code)


def keep_earlier_metrics(run_dir: Path, resumed: str | None) -> None:
    """Set aside the CSV of a run that goes on in its own folder: the logger starts a new one."""
    metrics = run_dir / "csv/metrics.csv"
    if resumed is not None and rank_zero_only.rank == 0 and metrics.is_file():
        metrics.replace(metrics.with_name(f"metrics_until_{Path(resumed).stem}.csv"))


def git_commit() -> str | None:
    """Return the commit of this code, where it is a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def quieten_lightning() -> None:
    """Hide what a person training with this code need not read, and all but one rank's log."""
    if rank_zero_only.rank != 0:
        logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _values(node: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=True)
    return {key: value for key, value in values.items() if key != "_target_"}


if __name__ == "__main__":
    main()
