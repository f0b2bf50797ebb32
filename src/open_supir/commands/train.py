"""Train a stage: experiment=robust_encoder, then experiment=zerosft.

Builds what the configuration describes and trains it. The steps are in training/*_module.py.
"""

from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, plain
from open_supir.base.places import CONF
from open_supir.base.run_folders import read_config, run_folder
from open_supir.data.datamodule import RestorationDataModule
from open_supir.training.base_weights import load_base_weights, pick_inputs
from open_supir.training.changes import check_changes
from open_supir.training.fit import check_data, fit, make_ready, open_folder, start_process
from open_supir.training.recipe import ARCHITECTURE, make_recipe
from open_supir.training.replay import prepare_replay
from open_supir.training.resume import is_finished, remove_unused, resolve_checkpoint
from open_supir.training.settings import check_settings
from open_supir.training.trained_parts import TrainedParts


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
        remove_unused(run_dir)
        return None
    before = {} if resumed is None else read_config(run_folder(resumed))
    words = pick(cfg, before)
    cfg.data.update(instantiate(cfg.data, _convert_="all").chosen)
    if resumed is not None:
        check_changes(before, plain(cfg))
    open_folder(run_dir, plain(cfg), resumed, words)
    module, datamodule, trainer = build(cfg)
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    about = {"experiment": cfg.name, "stage": cfg.stage}
    options = {"run_dir": run_dir, "about": about, "resumed": resumed, "requeue": cfg.requeue}
    return fit(module, datamodule, trainer, **options)


def replay(record_path: str, run_dir: Path) -> None:
    """Repeat a recorded step of a run on one device, from its last checkpoint before that step."""
    values, step, start = prepare_replay(Path(record_path), run_dir)
    cfg = OmegaConf.create(values)
    start_process(cfg.seed)
    module, datamodule, trainer = build(cfg, step)
    trainer.fit(module, datamodule, ckpt_path=start, weights_only=True)


def build(
    cfg: DictConfig, *extra: pl.Callback
) -> tuple[TrainedParts, RestorationDataModule, pl.Trainer]:
    """Build module, data and trainer, and load the base weights; `extra` callbacks come first."""
    steps = {key: cfg[key] for key in ("max_steps", "val_every", "save_every")}
    check_settings(steps, cfg.trainer.precision)
    architecture = {part: plain(cfg[part]) for part in ARCHITECTURE}
    wanted = {"sampler": plain(cfg.sampler), "options": plain(cfg.options)}
    recipe = make_recipe(cfg.stage, architecture=architecture, **wanted)
    data: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    check_data(data)
    module: TrainedParts = instantiate(cfg.module, recipe=recipe, _convert_="all")
    module.recipe = recipe | load_weights(module, cfg)
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
    loggers = [instantiate(c, _convert_="all") for c in cfg.logger.values() if c]
    parts = {"callbacks": [*extra, *callbacks], "logger": loggers}
    trainer: pl.Trainer = instantiate(cfg.trainer, **parts, _convert_="all")
    switches = {key: cfg[key] for key in ("channels_last", "checkpointing", "compile")}
    make_ready(module, data, trainer, **switches)
    return module, data, trainer


def pick(cfg: DictConfig, resumed: dict) -> list[str]:
    """Name in `cfg.weights` the files of earlier runs; returns what was chosen, in words."""
    chosen, words = pick_inputs(cfg.stage, cfg.weights, runs_dir=cfg.runs_dir, resumed=resumed)
    cfg.weights.update(chosen)
    return words


def load_weights(module: TrainedParts, cfg: DictConfig) -> dict[str, dict]:
    """Load the base weights that the configuration names; returns the recipe's entries."""
    pick(cfg, {})
    settings = {"precision": str(cfg.trainer.precision), "prediction": cfg.denoiser.prediction}
    return load_base_weights(module, cfg.weights, ignored_keys=cfg.ignored_keys, **settings)


if __name__ == "__main__":
    main()
