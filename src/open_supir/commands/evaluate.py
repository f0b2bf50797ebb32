"""Measure a checkpoint, or outputs of other systems, on a benchmark.

Compares the newest checkpoint with each of its encoders alone and with the unprocessed LQ, on the
images of a protocol, and writes the table to the checkpoint's run folder. Outputs of other systems
(outputs=DIR) and spandrel models join the same table. report=DIR only rebuilds tables from records;
study=DIR runs a blinded preference study.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, pick_device, plain
from open_supir.base.registry import build, trust

if TYPE_CHECKING:
    import torch

    from open_supir.evaluation.evaluate import TrainingDegradation
    from open_supir.evaluation.models import Methods
    from open_supir.inference.model import Model


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    print(evaluate(cfg))


def evaluate(cfg: DictConfig) -> str:
    """Evaluate a checkpoint, or outputs of other systems; returns the table as Markdown."""
    from hydra.utils import instantiate

    from open_supir.base.run_folders import read_config, run_folder
    from open_supir.evaluation import METRICS
    from open_supir.evaluation.evaluate import evaluate_methods, prepare_metrics, rebuild
    from open_supir.evaluation.models import other_methods
    from open_supir.evaluation.preference import run_study
    from open_supir.inference.model import Model

    for metric in instantiate(cfg.metrics.get("own", []), _convert_="all"):
        METRICS[metric.name] = metric
    if cfg.report is not None:
        return rebuild(Path(cfg.report), cfg.output)
    if cfg.study is not None:
        return run_study(Path(cfg.study), plain(cfg.preference))
    protocol = instantiate(cfg.protocol, _convert_="all")
    if cfg.metrics.names is not None:
        protocol = replace(protocol, metrics=tuple(cfg.metrics.names))
    prepare_metrics(protocol, require=cfg.metrics.require, download=cfg.metrics.download)
    device = pick_device(cfg.device)
    methods, settings = other_methods(plain(cfg.outputs), plain(cfg.spandrel), device)
    model, trained = None, OmegaConf.create()
    if cfg.checkpoint is not None or not methods:
        model = Model.find(
            cfg.checkpoint,
            runs_dir=cfg.runs_dir,
            weights=plain(cfg.weights),
            ignored_keys=tuple(cfg.ignored_keys),
        )
        trained = OmegaConf.create(read_config(run_folder(model.checkpoint)))
    _require_what_no_run_says(cfg, protocol, model, trained)
    if model is not None:
        own, own_settings = _model_methods(cfg, model, device)
        methods, settings = own | methods, settings | own_settings
    run = run_folder(model.checkpoint) if model else Path(cfg.output)
    return evaluate_methods(
        protocol,
        (methods, settings),
        data_root=Path(cfg.data_root or trained.data.root),
        output=Path(cfg.output) if cfg.output else _sweep_folder(cfg, trained) or run / "eval",
        run=run,
        seed=cfg.seed,
        degrade=_training_degradation(cfg, trained),
        save_images=cfg.save_images,
        resume=cfg.resume,
        device=device,
    )


def _model_methods(cfg: DictConfig, model: "Model", device: "torch.device") -> "Methods":
    from hydra.utils import instantiate

    from open_supir.evaluation.models import model_methods

    options = model.options(plain(cfg.sampler), {**plain(cfg.options), "seed": cfg.seed})
    restorer = model.load(options, captioner=instantiate(cfg.captioner), device=device)
    return model_methods(restorer, model, captioner=plain(cfg.captioner))


def _training_degradation(cfg: DictConfig, trained: DictConfig) -> "TrainingDegradation | None":
    from open_supir.evaluation.evaluate import TrainingDegradation

    trust(plain(cfg.get("degradation")))  # that of a run's folder only if it is known
    ranges = cfg.get("degradation") or trained.get("degradation")
    if ranges is None:
        return None
    text = OmegaConf.to_yaml(ranges, resolve=True, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return TrainingDegradation(pipeline=build(plain(ranges)), ranges=plain(ranges), digest=digest)


def _require_what_no_run_says(
    cfg: DictConfig, protocol: Any, model: "Model | None", trained: DictConfig
) -> None:
    """Require the settings that a run folder would supply, if there is none."""
    if trained:
        return
    needed = ["data_root", "output"]
    if protocol.degradation is None and protocol.lq_folder is None:
        needed.append("degradation")
    lost = [key for key in needed if not cfg.get(key)]
    if lost:
        what = "without a checkpoint there is" if model is None else f"{model.checkpoint} is in"
        raise ValueError(
            f"{what} no run folder, whose configuration would supply more; "
            f"set {', '.join(f'{key}=...' for key in lost)}"
        )


def _sweep_folder(cfg: DictConfig, trained: DictConfig) -> Path | None:
    """Return the output folder of a multirun job, eval/ in its own run folder; otherwise None.

    `ablation` reads that folder as a run. Its configuration is the training's, with the
    evaluation's under `evaluation`.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from open_supir.base.files import write_text
    from open_supir.base.run_folders import write_config

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_config(folder, OmegaConf.merge(trained, {"evaluation": plain(cfg)}))  # type: ignore[arg-type]
    overrides = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
    write_text(folder / ".hydra" / "overrides.yaml", overrides)  # ablation labels runs by them
    return folder / "eval"


if __name__ == "__main__":
    main()
