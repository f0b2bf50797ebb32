"""Train a stage: experiment=robust_encoder, then experiment=zerosft.

Builds what the configuration describes, loads the base weights and trains. The training steps are
in training/*_module.py.
"""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, plain
from open_supir.base.places import CONF
from open_supir.base.registry import trust
from open_supir.base.run_folders import read_config, run_folder, write_config
from open_supir.data.datamodule import RestorationDataModule
from open_supir.training.base_weights import load_base_weights, pick_inputs
from open_supir.training.changes import check_changes
from open_supir.training.fit import fit, git_commit, keep_earlier_metrics, make_ready, start_process
from open_supir.training.replay import ReplayStep, config_of_replay, open_record
from open_supir.training.resume import is_finished, remove_unused, resolve_checkpoint
from open_supir.training.settings import check_crops, check_settings
from open_supir.training.trained_parts import TrainedParts

log = logging.getLogger(__name__)

# The parts from which `build` can rebuild the networks without the run's configuration.
ARCHITECTURE = ("unet", "control", "connector", "vae", "conditioner", "denoiser")


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment; returns its last validation loss or PSNR, for sweepers."""
    if cfg.replay is not None:
        return replay(cfg.replay, Path(cfg.run_dir))
    if OmegaConf.is_missing(cfg, "name"):
        known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
        raise ValueError(f"set an experiment, e.g. experiment=zerosft; known: {', '.join(known)}")
    return train(cfg)


def train(cfg: DictConfig) -> float | None:
    """Run one experiment into its run folder."""
    start_process(cfg.seed)
    run_dir = Path(cfg.run_dir)
    cfg.ckpt_path = resumed = resolve_checkpoint(
        cfg.ckpt_path, run_dir=run_dir, runs_dir=cfg.runs_dir, stage=cfg.stage, name=cfg.name
    )
    if resumed is not None and is_finished(Path(resumed), cfg.max_steps):
        if rank_zero_only.rank == 0:
            remove_unused(run_dir)
        return None
    before = {} if resumed is None else read_config(run_folder(resumed))
    picked = pick_inputs(cfg, before)
    if resumed is not None:
        check_changes(before, plain(cfg))
    if rank_zero_only.rank == 0:
        write_config(run_dir, cfg)
    log.info("%s", "; ".join([f"{cfg.name} into {run_dir}", *picked]))
    keep_earlier_metrics(run_dir, resumed)
    module, datamodule, trainer = build(cfg)
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    about = {"experiment": cfg.name, "stage": cfg.stage}
    options = {"run_dir": run_dir, "about": about, "resumed": resumed, "requeue": cfg.requeue}
    return fit(module, datamodule, trainer, **options)


def replay(record_path: str, run_dir: Path) -> None:
    """Repeat a recorded step of a run on one device, from its last checkpoint before that step."""
    record, run, start = open_record(Path(record_path))
    cfg = OmegaConf.create(config_of_replay(run, record, run_dir))
    start_process(cfg.seed)
    module, datamodule, trainer = build(cfg, ReplayStep(record, run_dir / "replay.json"))
    trainer.fit(module, datamodule, ckpt_path=start, weights_only=True)


def build(
    cfg: DictConfig, *extra: pl.Callback
) -> tuple[TrainedParts, RestorationDataModule, pl.Trainer]:
    """Build module, data and trainer, and load the base weights; `extra` callbacks come first."""
    steps = {key: cfg[key] for key in ("max_steps", "val_every", "save_every")}
    check_settings(steps, cfg.trainer.precision)
    recipe: dict[str, Any] = {
        "stage": cfg.stage,
        "architecture": {part: plain(cfg[part]) for part in ARCHITECTURE},
        "sampler": plain(cfg.sampler),
        "options": plain(cfg.options),
        "weights": {},
        "commit": git_commit(),
    }
    trust(recipe)
    module: TrainedParts = instantiate(cfg.module, recipe=recipe, _convert_="all")
    module.recipe = recipe | {"weights": load_base_weights(module, cfg)}
    data: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    check_crops(module, data)
    callbacks, loggers = (
        [instantiate(c, _convert_="all") for c in group.values() if c]
        for group in (cfg.callbacks, cfg.logger)
    )
    parts = {"callbacks": [*extra, *callbacks], "logger": loggers}
    trainer: pl.Trainer = instantiate(cfg.trainer, **parts, _convert_="all")
    switches = {key: cfg[key] for key in ("channels_last", "checkpointing", "compile")}
    make_ready(module, data, trainer, **switches)
    return module, data, trainer


if __name__ == "__main__":
    main()
