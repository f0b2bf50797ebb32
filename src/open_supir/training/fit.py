"""Fit: trains what was built, and writes the run's summary."""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from open_supir.base.run_folders import write_config, write_summary
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.precomputed import describe_maker
from open_supir.data.samples import collate
from open_supir.networks.conditioner import Conditioner, tokenize
from open_supir.networks.switches import (
    Checkpointing,
    Compilation,
    checkpoint_activations,
    compile_networks,
)
from open_supir.training.callbacks import EagerValidation
from open_supir.training.interruption import end_if_interrupted
from open_supir.training.settings import check_crops
from open_supir.training.supir_module import SupirModule
from open_supir.training.topology import keep_global_batch
from open_supir.training.trained_parts import TrainedParts
from open_supir.training.two_optimizers import TwoOptimizers

log = logging.getLogger(__name__)


def start_process(seed: int) -> None:
    """Seed everything; silence irrelevant warnings and the logs of all ranks but the first."""
    if rank_zero_only.rank != 0:
        logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training")
    # keep_earlier_metrics has put the earlier file aside
    warnings.filterwarnings("ignore", message=".*Previous log files in this directory will be")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    pl.seed_everything(seed, workers=True, verbose=False)


@rank_zero_only
def check_data(datamodule: RestorationDataModule) -> None:
    """Make the shards if that is to do, and look for faults, before weights are loaded.

    Raises:
        FileNotFoundError, ValueError, OSError: The data cannot be trained on.
    """
    datamodule.prepare_data()
    datamodule.check()


def make_ready(
    module: TrainedParts,
    datamodule: RestorationDataModule,
    trainer: pl.Trainer,
    *,
    channels_last: bool,
    checkpointing: Checkpointing,
    compile: Compilation,
) -> None:
    """Apply the networks' switches, and what module, data and trainer must know of each other.

    Raises:
        ValueError: The networks cannot halve the crops as often as they must.
    """
    check_crops(module, datamodule)
    if datamodule.precomputed and isinstance(module, SupirModule):
        size = datamodule.sample_reader.crop_size
        datamodule.made_by = {
            "latents": describe_maker(module.vae, size=size),
            "text": describe_maker(module.conditioner),
        }
    if isinstance(getattr(module, "conditioner", None), Conditioner):
        if "text" not in datamodule.precomputed:
            datamodule.collate = partial(collate, tokenize=tokenize)
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint_activations(module, checkpointing)
    compile_networks(module, compile, dynamic=False)
    if compile == "full":
        trainer.callbacks.insert(0, EagerValidation())  # type: ignore[attr-defined]
    keep_global_batch(
        trainer, global_batch=datamodule.global_batch, micro_batch=datamodule.micro_batch
    )
    if isinstance(module, TwoOptimizers):
        module.take_over(trainer)


def fit(
    module: TrainedParts,
    datamodule: RestorationDataModule,
    trainer: pl.Trainer,
    *,
    run_dir: Path,
    config: Mapping[str, Any],
    resumed: str | None,
) -> float | None:
    """Train, write the run's summary, and return the last validation loss or PSNR.

    Args:
        config: Of the run, for its loggers and summary; `requeue` requeues the Slurm job after a
            stop signal.
        resumed: The checkpoint to resume from; None validates the untrained module first.

    Raises:
        SystemExit: A signal stopped training.
    """
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    log.info("%.2fM parameters, of which %.2fM are trained", total / 1e6, trained / 1e6)
    untrained = {} if resumed else trainer.validate(module, datamodule, verbose=False)[0]
    start = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=resumed, weights_only=True)
    seconds = time.perf_counter() - start
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        summary = {
            "experiment": config["name"],
            "stage": config["stage"],
            "step": trainer.global_step,
            "seconds": round(seconds, 1),
            "parameters": total,
            "trained_parameters": trained,
            "weights": module.recipe["weights"],
            "resumed": resumed,
            **metrics,
            **{f"{name}_untrained": float(value) for name, value in untrained.items()},
        }
        write_summary(run_dir, summary)
    for name, value in untrained.items():
        if name in metrics:  # it is not if a signal came before the first validation
            words = "%s: %.4f untrained, %.4f after %d steps"
            log.info(words, name, value, metrics[name], trainer.global_step)
    end_if_interrupted(trainer, requeue=config["requeue"])
    return metrics.get("val/loss", metrics.get("val/psnr"))


@rank_zero_only
def open_folder(
    run_dir: Path, config: Mapping[str, Any], resumed: str | None, words: Sequence[str] = ()
) -> None:
    """Write a run's configuration into its folder; log this and `words`.

    The CSV of a run that is resumed there is renamed, because the logger starts a new one.
    """
    log.info("%s", "; ".join([f"{config['name']} into {run_dir}", *words]))
    write_config(run_dir, config)
    metrics = run_dir / "csv/metrics.csv"
    if resumed is not None and metrics.is_file():
        metrics.replace(metrics.with_name(f"metrics_until_{Path(resumed).stem}.csv"))
