"""Train: python -m src.train experiment=robust_encoder, or experiment=zerosft.

Compose, build, load the base weights, fit. What a step does is in src/training/*_module.py.
"""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.base_weights import load_base_weights
from src.cli import command
from src.networks.switches import checkpoint_activations, compile_networks
from src.runs import newest_checkpoint, write_config, write_summary
from src.training.interruption import INTERRUPTED_EXIT, StopOnSignal

log = logging.getLogger(__name__)

# What rebuilds the networks without the run's configuration; src/networks/build.py reads it.
ARCHITECTURE = ("unet", "control", "connector", "vae", "conditioner", "denoiser")


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment; returns its last validation loss or PSNR, for sweepers."""
    return train(cfg)


def train(cfg: DictConfig) -> float | None:
    """Run one experiment into its run folder."""
    quieten_lightning()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = Path(cfg.run_dir)
    resumed = resolve_checkpoint(cfg)
    write_config(run_dir, cfg)
    log.info("%s into %s", cfg.name, run_dir)

    architecture = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ARCHITECTURE}
    recipe: dict[str, Any] = {
        "stage": cfg.stage,
        "architecture": architecture,
        "restore": {"settings": _values(cfg.sampler), **_values(cfg.restore)},
        "weights": {},
    }
    module = instantiate(cfg.module, recipe=recipe, _convert_="all")
    recipe["weights"] = load_base_weights(module, cfg)
    module.recipe = recipe
    if cfg.channels_last:
        module.to(memory_format=torch.channels_last)
    checkpoint_activations(module, cfg.checkpointing)
    compile_networks(module, cfg.compile)
    datamodule = instantiate(cfg.data, _convert_="all")
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
    loggers = [instantiate(c, _convert_="all") for c in cfg.logger.values() if c]
    trainer: pl.Trainer = instantiate(
        cfg.trainer, callbacks=callbacks, logger=loggers, _convert_="all"
    )
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))

    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    log.info("%.2fM parameters, of which %.2fM are trained", total / 1e6, trained / 1e6)
    untrained = {} if resumed else trainer.validate(module, datamodule, verbose=False)[0]
    start = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=resumed, weights_only=True)
    seconds = time.perf_counter() - start

    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
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
            "resumed": None if resumed is None else str(resumed),
            **metrics,
            **{f"{name}_untrained": float(value) for name, value in untrained.items()},
        },
    )
    for name, value in untrained.items():
        log.info(
            "%s: %.4f untrained, %.4f after %d steps",
            name,
            value,
            metrics[name],
            trainer.global_step,
        )
    for callback in callbacks:
        if isinstance(callback, StopOnSignal) and callback.received is not None:
            raise SystemExit(INTERRUPTED_EXIT)
    return metrics.get("val/loss", metrics.get("val/psnr"))


def quieten_lightning() -> None:
    """Hide what a person training with this code need not read."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def _values(node: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(node, resolve=True)
    return {key: value for key, value in values.items() if key != "_target_"}


def resolve_checkpoint(cfg: DictConfig) -> str | None:
    """Return the checkpoint to resume from; `last` is the experiment's newest.

    Raises:
        FileNotFoundError: There is none.
    """
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path == "last":
        path = newest_checkpoint(cfg.runs_dir, stage=cfg.stage, name=cfg.name)
        if path is None:
            raise FileNotFoundError(
                f"ckpt_path=last, but {cfg.runs_dir}/{cfg.name} holds no checkpoint to resume from"
            )
    else:
        path = Path(cfg.ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"ckpt_path={path}: no such file")
    log.info("resuming from %s", path)
    return str(path)


if __name__ == "__main__":
    main()
