"""Train a stage: experiment=robust_encoder, then experiment=zerosft."""

from functools import partial
from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, picked, plain
from open_supir.base.options import choices
from open_supir.base.run_folders import read_config, run_folder
from open_supir.data.datamodule import RestorationDataModule
from open_supir.rehearsal.dry_run import dry_run_training, micro_batch_for
from open_supir.training.base_weights import check_files, load_base_weights, pick_inputs
from open_supir.training.changes import check_changes
from open_supir.training.fit import check_data, fit, make_ready, open_folder, start_process
from open_supir.training.recipe import make_recipe
from open_supir.training.replay import prepare_replay
from open_supir.training.resume import is_finished, resolve_checkpoint
from open_supir.training.settings import check_settings
from open_supir.training.trained_parts import TrainedParts

made = partial(instantiate, _convert_="all")


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one experiment; returns its last validation loss or PSNR, for sweepers."""
    if cfg.replay is not None:
        return replay(cfg.replay, Path(cfg.run_dir))
    if OmegaConf.is_missing(cfg, "name"):
        known = ", ".join(choices("experiment"))
        raise ValueError(f"set an experiment, e.g. experiment=zerosft; known: {known}")
    return print(dry_run_training(plain(cfg), made)) if cfg.dry_run else train(cfg)


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
    cfg.data.update(made(cfg.data).chosen)
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
    data: RestorationDataModule = made(cfg.data)
    check_data(data)
    module: TrainedParts = made(cfg.module, recipe=recipe)
    loaded = load_base_weights(module, plain(cfg))
    module.recipe = recipe | loaded  # Hydra has built the parts of its own copy
    parts = {key: [made(c) for c in cfg[key].values() if c] for key in ("callbacks", "logger")}
    parts["callbacks"] = [*extra, *parts["callbacks"]]
    trainer: pl.Trainer = made(cfg.trainer, **parts)
    if data.micro_batch is None:
        device = trainer.strategy.root_device
        ranks = trainer.num_devices * trainer.num_nodes  # world_size is not known before fit
        data.micro_batch = micro_batch_for(device, plain(cfg), made, ranks=ranks)
    make_ready(module, data, trainer, **picked(cfg, "channels_last", "checkpointing", "compile"))
    return module, data, trainer


if __name__ == "__main__":
    main()
