"""Train a stage: experiment=robust_encoder, then experiment=zerosft."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, picked, plain
from open_supir.base.options import choices
from open_supir.base.run_folders import read_config, remove_empty_run, run_folder
from open_supir.data.datamodule import RestorationDataModule
from open_supir.rehearsal.dry_run import (
    dry_run_training,
    is_counted,
    micro_batch_for,
)
from open_supir.training.base_weights import check_files, load_base_weights, pick_inputs
from open_supir.training.changes import check_changes
from open_supir.training.fit import check_data, fit, make_ready, open_folder, start_process
from open_supir.training.recipe import make_recipe
from open_supir.training.replay import prepare_replay
from open_supir.training.resume import is_finished, resolve_checkpoint
from open_supir.training.settings import check_settings
from open_supir.training.trained_parts import TrainedParts


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment; returns its last validation loss or PSNR, for sweepers."""
    if cfg.replay is not None:
        return replay(cfg.replay, Path(cfg.run_dir))
    if OmegaConf.is_missing(cfg, "name"):
        known = ", ".join(choices("experiment"))
        raise ValueError(f"set an experiment, e.g. experiment=zerosft; known: {known}")
    return rehearse(cfg) if cfg.dry_run else train(cfg)


def rehearse(cfg: DictConfig) -> None:
    """Print what the run would cost; needs no weights, data or GPU."""
    check_settings(plain(cfg))
    if cfg.stage == "vae":
        raise ValueError(f"dry_run=true does not rehearse experiment={cfg.name}, an autoencoder's")
    left_out = without_files(cfg)
    try:
        print(dry_run_training(on_meta(cfg), plain(cfg), left_out))
    finally:
        remove_empty_run(Path(cfg.run_dir), Path(cfg.runs_dir))


def without_files(cfg: DictConfig) -> list[str]:
    """Change a one-step run so that it needs no weight files; returns what is not rehearsed.

    Raises:
        ValueError: LoRA layers are to be trained, which are added to loaded weights.
    """
    if "one_step" not in cfg:
        return []
    if cfg.one_step.unet_lora is not None:
        raise ValueError("dry_run=true does not rehearse one_step.unet_lora; leave it out")
    if cfg.one_step.sigma is None:
        cfg.one_step.sigma = 0.2  # training measures it; costs do not depend on it
    cfg.module.scores = None  # of validation
    if "weights" in cfg.discriminator:
        cfg.discriminator.weights = None
    if cfg.perceptual.distance is None:
        return []
    cfg.perceptual.distance = None
    return ["LPIPS needs its weight files; the distance of the encoder's features stands in for it"]


def train(cfg: DictConfig) -> float | None:
    """Run one experiment into its run folder."""
    start_process(cfg.seed)
    run_dir = Path(cfg.run_dir)
    cfg.ckpt_path = resumed = resolve_checkpoint(
        cfg.ckpt_path, run_dir=run_dir, runs_dir=cfg.runs_dir, stage=cfg.stage, name=cfg.name
    )
    if resumed is not None and is_finished(Path(resumed), cfg.max_steps, run_dir):
        return None
    before = {} if resumed is None else read_config(run_folder(resumed))
    chosen, words = pick_inputs(cfg.stage, cfg.weights, runs_dir=cfg.runs_dir, resumed=before)
    cfg.weights.update(chosen)
    cfg.data.update(instantiate(cfg.data, _convert_="all").chosen)
    if resumed is not None:
        check_changes(before, plain(cfg))
    open_folder(run_dir, plain(cfg), resumed, words)
    return fit(*build(cfg), run_dir=run_dir, config=plain(cfg), resumed=resumed)


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
    check_settings(plain(cfg))
    recipe = make_recipe(plain(cfg))
    check_files(cfg.stage, plain(cfg.weights))  # before shards are made
    data: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    check_data(data)
    module: TrainedParts = instantiate(cfg.module, recipe=recipe, _convert_="all")
    module.recipe = recipe | load_weights(module, cfg)  # Hydra has built the parts of its own copy
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
    loggers = [instantiate(c, _convert_="all") for c in cfg.logger.values() if c]
    parts = {"callbacks": [*extra, *callbacks], "logger": loggers}
    trainer: pl.Trainer = instantiate(cfg.trainer, **parts, _convert_="all")
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu and data.micro_batch is None and is_counted(plain(cfg)):
        ranks = trainer.num_devices * trainer.num_nodes  # world_size is not known before fit
        data.micro_batch = micro_batch_for(on_meta(cfg), plain(cfg), ranks=ranks)
    make_ready(module, data, trainer, **picked(cfg, "channels_last", "checkpointing", "compile"))
    return module, data, trainer


def on_meta(cfg: DictConfig) -> TrainedParts:
    """Build the module without memory, to count with."""
    with torch.device("meta"):
        return instantiate(cfg.module, recipe={}, _convert_="all")


def load_weights(module: TrainedParts, cfg: DictConfig) -> dict[str, dict]:
    """Load the base weights that the configuration names; returns the recipe's entries."""
    settings = {"precision": str(cfg.trainer.precision), "prediction": cfg.denoiser.prediction}
    settings |= picked(cfg, "stage", "runs_dir", "ignored_keys")
    return load_base_weights(module, cfg.weights, **settings)


if __name__ == "__main__":
    main()
