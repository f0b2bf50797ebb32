"""Measure a checkpoint, or outputs of other systems, on a benchmark.

Compares the newest checkpoint with each of its encoders alone and with the unprocessed LQ, on the
images of a protocol, and writes the table to the checkpoint's run folder. Outputs of other systems
(outputs=DIR) and spandrel models join the same table. report=DIR only rebuilds tables from records;
study=DIR runs a blinded preference study.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_supir.base.cli import command, pick_device, picked, plain


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    print(evaluate(cfg))


def evaluate(cfg: DictConfig) -> str:
    """Do what is asked for; returns what to print, a table as Markdown for most."""
    if cfg.dry_run:
        return rehearse(cfg)
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
    from open_supir.evaluation.evaluate import evaluate_methods, prepare_metrics
    from open_supir.evaluation.models import load_methods, other_methods
    from open_supir.evaluation.run_inputs import RunInputs
    from open_supir.inference.model import Model

    if cfg.options.mask is not None:
        raise ValueError(
            f"options.mask={cfg.options.mask}: whole images are restored here; metrics.mask= "
            "measures regions of them"
        )
    protocol = instantiate(cfg.protocol, _convert_="all")
    if cfg.metrics.names is not None:
        protocol = replace(protocol, metrics=tuple(cfg.metrics.names))
    prepare_metrics(protocol, require=cfg.metrics.require, download=cfg.metrics.download)
    device = pick_device(cfg.device)
    others = other_methods(plain(cfg.outputs), plain(cfg.spandrel), device)
    keys = ("runs_dir", "shipped", "dtype", "channels_last", "ignored_keys")
    find = partial(Model.find, **picked(cfg, *keys), device=device)
    measured = cfg.checkpoint is not None or not others[0]
    model = find(cfg.checkpoint, weights=plain(cfg.weights)) if measured else None
    inputs = RunInputs.find(plain(cfg), protocol, checkpoint=model and model.checkpoint)
    further = plain(cfg.checkpoints) or {}
    methods = load_methods(
        model,
        {str(name): find(path, weights={}) for name, path in further.items()},
        others,
        sampler=plain(cfg.sampler),
        options={**plain(cfg.options), "seed": cfg.seed},
        captioner=instantiate(cfg.captioner),
        described=plain(cfg.captioner),
        device=device,
    )
    mask, kept = cfg.metrics.get("mask"), picked(cfg, "seed", "save_images", "resume")
    return evaluate_methods(protocol, methods, inputs=inputs, mask=mask, device=device, **kept)


def rehearse(cfg: DictConfig) -> str:
    """Return what restoring the protocol's images, or images of `sizes`, would cost on a GPU."""
    from open_supir.rehearsal.restoring_report import SETTINGS, dry_run_restoring, read_sizes

    protocol = instantiate(cfg.protocol, _convert_="all")
    sizes = plain(cfg.sizes) or (None if protocol.crop is None else [protocol.crop])
    paths = [] if sizes or not cfg.data_root else protocol.inputs(Path(cfg.data_root))
    return dry_run_restoring(picked(cfg, *SETTINGS), read_sizes(sizes, paths))


if __name__ == "__main__":
    main()
