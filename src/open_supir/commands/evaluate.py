"""Measure a checkpoint, or outputs of other systems, on a benchmark.

Compares the newest checkpoint with each of its encoders alone and with the unprocessed LQ, on the
images of a protocol, and writes the table to the checkpoint's run folder. Outputs of other systems
(outputs=DIR) and spandrel models join the same table. report=DIR only rebuilds tables from records;
study=DIR runs a blinded preference study.
"""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, pick_device, picked, plain
from open_supir.base.registry import trust


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    print(evaluate(cfg))


def evaluate(cfg: DictConfig) -> str:
    """Do what is asked for; returns what to print, a table as Markdown for most."""
    if cfg.dry_run:
        return rehearse(cfg)
    from hydra.utils import instantiate

    from open_supir.evaluation import METRICS
    from open_supir.evaluation.evaluate import rebuild
    from open_supir.evaluation.preference import run_study

    METRICS.update({m.name: m for m in instantiate(cfg.metrics.get("own", []), _convert_="all")})
    if cfg.report is not None:
        return rebuild(Path(cfg.report), cfg.output)
    if cfg.study is not None:
        return run_study(Path(cfg.study), plain(cfg.preference))
    return measure(cfg)


def measure(cfg: DictConfig) -> str:
    """Measure a checkpoint, or outputs of other systems; returns the table."""
    from hydra.utils import instantiate

    from open_supir.base.run_folders import run_of, sweep_folder
    from open_supir.data import write_demo_shards
    from open_supir.evaluation import evaluate as steps
    from open_supir.evaluation.models import load_methods, other_methods
    from open_supir.inference.model import Model

    protocol = instantiate(cfg.protocol, _convert_="all")
    if cfg.metrics.names is not None:
        protocol = replace(protocol, metrics=tuple(cfg.metrics.names))
    steps.prepare_metrics(protocol, require=cfg.metrics.require, download=cfg.metrics.download)
    device = pick_device(cfg.device)
    others = other_methods(plain(cfg.outputs), plain(cfg.spandrel), device)
    found = {
        **picked(cfg, "runs_dir", "shipped", "dtype", "channels_last", "ignored_keys"),
        "device": device,
    }
    model, trained, run = None, OmegaConf.create(), Path(cfg.output or "")
    if cfg.checkpoint is not None or not others[0]:
        model = Model.find(cfg.checkpoint, weights=plain(cfg.weights), **found)
        run, trained = run_of(model.checkpoint, cfg.runs_dir)
    if not trained:
        given = {k: cfg.get(k) for k in ("data_root", "output", "degradation")}
        steps.require_places(given, protocol, checkpoint=model and model.checkpoint)
    further = plain(cfg.checkpoints) or {}
    methods = load_methods(
        model,
        {str(name): Model.find(path, weights={}, **found) for name, path in further.items()},
        others,
        sampler=plain(cfg.sampler),
        options={**plain(cfg.options), "seed": cfg.seed},
        captioner=instantiate(cfg.captioner),
        described=plain(cfg.captioner),
        device=device,
    )
    root = Path(cfg.data_root or trained.data.root)
    if not root.exists() and str(root) == trained.get("data", {}).get("prepare_at"):
        write_demo_shards(root)
    trust(plain(cfg.get("degradation")))  # that of a run's folder only if it is known
    ranges = cfg.get("degradation") or trained.get("degradation")
    return steps.evaluate_methods(
        protocol,
        methods,
        data_root=root,
        heldout=None if cfg.data_root else trained.data.get("heldout"),
        output=Path(cfg.output) if cfg.output else sweep_folder(trained, cfg) or run / "eval",
        run=run,
        seed=cfg.seed,
        degrade=steps.TrainingDegradation.of(plain(ranges)) if ranges else None,
        save_images=cfg.save_images,
        resume=cfg.resume,
        device=device,
        mask=cfg.metrics.get("mask"),
    )


def rehearse(cfg: DictConfig) -> str:
    """Return what restoring the protocol's images, or images of `sizes`, would cost on a GPU."""
    from hydra.utils import instantiate

    from open_supir.rehearsal.restoring_report import SETTINGS, dry_run_restoring, read_sizes

    protocol = instantiate(cfg.protocol, _convert_="all")
    sizes = plain(cfg.sizes) or (None if protocol.crop is None else [protocol.crop])
    paths = [] if sizes or not cfg.data_root else protocol.inputs(Path(cfg.data_root))
    return dry_run_restoring(picked(cfg, *SETTINGS), read_sizes(sizes, paths))


if __name__ == "__main__":
    main()
