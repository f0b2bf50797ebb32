"""Evaluate a checkpoint: python -m src.evaluate (make eval).

Restores the images of a protocol by the newest checkpoint, by the robust encoder and by the
ordinary encoder alone, and by doing nothing; the table goes into the checkpoint's run folder.
Takes outputs of other systems (outputs=DIR) and spandrel models into the same table, writes tables
again from records alone (report=DIR), and holds a blinded preference study (study=DIR).
"""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from open_supir.base.cli import command, pick_device
from open_supir.base.files import sha256_of, write_text
from open_supir.base.images import to_signed, to_unit
from open_supir.base.places import located
from open_supir.base.run_folders import (
    newest_checkpoint,
    read_config,
    run_folder,
    write_config,
)
from open_supir.evaluation import (
    Protocol,
    check_weights,
    load_samples,
    read_records,
    run_benchmark,
    write_report,
)
from open_supir.evaluation.baselines import digest_folder, folder_outputs, spandrel_models
from open_supir.evaluation.preference import run_study
from open_supir.evaluation.protocols import Degrade
from open_supir.evaluation.provenance import (
    describe_environment,
    weight_hashes,
    write_environment,
)
from open_supir.evaluation.samples import Method
from open_supir.evaluation.weights import fetch
from open_supir.inference import Restorer

log = logging.getLogger(__name__)


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    print(evaluate(cfg))


def evaluate(cfg: DictConfig) -> str:
    """Evaluate a checkpoint, or outputs of other systems; returns the table as Markdown."""
    if cfg.report is not None:
        return rebuild(Path(cfg.report), cfg.output)
    if cfg.study is not None:
        return run_study(Path(cfg.study), OmegaConf.to_container(cfg.preference))  # type: ignore[arg-type]
    protocol: Protocol = instantiate(cfg.protocol, _convert_="all")
    if cfg.metrics.names is not None:
        protocol = replace(protocol, metrics=tuple(cfg.metrics.names))
    _find_weights(cfg, protocol)
    device = pick_device(cfg.device)
    others, settings = other_methods(cfg, device)
    with_model = cfg.checkpoint is not None or not others
    checkpoint = find_checkpoint(cfg) if with_model else None
    config = OmegaConf.create(read_config(run_folder(checkpoint)) if checkpoint else {})
    _require_what_no_run_says(cfg, protocol, checkpoint, config)
    run = run_folder(checkpoint) if checkpoint else Path(cfg.output)
    out_dir = Path(cfg.output) if cfg.output else sweep_folder(cfg, config) or run / "eval"
    hq, lq = protocol.folders(Path(cfg.data_root or config.data.root))
    ranges = cfg.get("degradation") or config.get("degradation")
    made_here = protocol.degradation is None and lq is None

    methods: dict[str, Method] = {"lq": lambda sample: sample.lq}
    if checkpoint is not None:
        ours, own = model_methods(cfg, checkpoint, device)
        methods, settings = methods | ours, settings | own
    methods |= others
    common = {**protocol.settings(), "restore_seed": cfg.seed}
    if made_here:
        common["degradation"] = _digest(ranges)
    records = run_benchmark(
        load_samples(protocol, hq=hq, lq=lq, degrade=pipeline_degrade(ranges) if ranges else None),
        methods,
        protocol.metrics,
        out_dir=out_dir,
        run=str(run),
        settings=common,
        method_settings=settings,
        border=protocol.border,
        save_images=cfg.save_images,
        resume=cfg.resume,
        device=device,
    )
    environment = describe_environment(
        device,
        protocol={"name": protocol.name, "source": protocol.source},
        degradation=OmegaConf.to_container(ranges, resolve=True) if made_here else None,
        metric_weights=weight_hashes(protocol.metrics),
    )
    write_environment(environment, out_dir)
    log.info("report: %s", out_dir / "table.md")
    return write_report(records, out_dir, title=f"{run.name}: {protocol.name}")


def rebuild(folder: Path, output: str | None) -> str:
    """Write tables and page again from the records that lie in a folder.

    Raises:
        FileNotFoundError: There are none.
    """
    if not (folder / "records.jsonl").is_file():
        raise FileNotFoundError(f"report={folder}: there is no records.jsonl in it")
    records = read_records(folder / "records.jsonl")
    protocol = records[0]["settings"].get("protocol", "evaluation") if records else "evaluation"
    title = f"{Path(records[0]['run']).name}: {protocol}" if records else ""
    return write_report(records, Path(output or folder), title=title, source=folder)


def model_methods(
    cfg: DictConfig, checkpoint: Path, device: torch.device
) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
    """Return what a checkpoint can do as methods, and what the numbers of each depend on."""
    options = {key: value for key, value in cfg.options.items() if value is not None}
    weights: Any = OmegaConf.to_container(cfg.weights)
    restorer = Restorer.from_checkpoint(
        checkpoint,
        weights=weights,
        settings=instantiate(cfg.get("sampler"), _convert_="all"),
        captioner=instantiate(cfg.captioner),
        device=device,
        seed=cfg.seed,
        **options,
    )
    files = {key: _hash_weights(path) for key, path in weights.items() if path}
    loaded: dict[str, Any] = {"checkpoint": sha256_of(checkpoint), **files}
    restored = {
        **loaded,
        "captioner": OmegaConf.to_container(cfg.captioner),
        "options": restorer.options.described(),
    }
    methods: dict[str, Method] = {
        "ordinary_encoder": lambda sample: restorer.clean(sample.lq, robust=False),
        "robust_encoder": lambda sample: restorer.clean(sample.lq),
        "restored": lambda sample: restorer(sample.lq, source=sample.source).restored,
    }
    return methods, {"ordinary_encoder": loaded, "robust_encoder": loaded, "restored": restored}


def other_methods(
    cfg: DictConfig, device: torch.device
) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
    """Return what others made or can do as methods, and what the numbers of each depend on.

    Raises:
        ValueError: Two of them, or one and a row that is always there, share a name.
    """
    folders, models = named_outputs(cfg.outputs), dict(cfg.spandrel or {})
    taken = {"lq", "hq", "ordinary_encoder", "robust_encoder", "restored"}
    for name in [*folders, *map(str, models)]:
        if name in taken:
            raise ValueError(f"there is a row {name!r} already; name it: outputs={{NAME: FOLDER}}")
        taken.add(name)
    methods = folder_outputs(folders) | spandrel_models(models, device)
    settings = {name: {"outputs": digest_folder(folder)} for name, folder in folders.items()}
    settings |= {str(name): {"weights": sha256_of(Path(file))} for name, file in models.items()}
    return methods, settings


def pipeline_degrade(ranges: DictConfig) -> Degrade:
    """Return the training degradation as a function of one image and a seed."""
    pipeline = instantiate(ranges, _convert_="all")

    def degrade(image: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
        signed = to_signed(image)
        params = pipeline.draw(torch.tensor([seed]), size=(image.shape[-2], image.shape[-1]))
        how = {"summary": params.summaries()[0], **params.rows()[0]}
        return to_unit(pipeline.apply(signed, params)), how

    return degrade


def named_outputs(outputs: Any) -> dict[str, Path]:
    """Return the folders of `outputs`, which is one folder or names with folders."""
    if outputs is None:
        return {}
    if isinstance(outputs, str):
        return {Path(outputs).name: Path(outputs)}
    return {str(name): Path(folder) for name, folder in outputs.items()}


def _find_weights(cfg: DictConfig, protocol: Protocol) -> None:
    """Fetch the weights of metrics where that is asked for, and see to the required ones."""
    unasked = set(cfg.metrics.require) - set(protocol.metrics)
    if unasked:
        raise ValueError(
            f"metrics.require={sorted(unasked)} is not measured; measured by protocol "
            f"{protocol.name}: {', '.join(protocol.metrics)}; choose others by metrics.names=[...]"
        )
    if cfg.metrics.download:
        missing = check_weights(protocol.metrics)
        fetch(dict.fromkeys(file for files in missing.values() for file in files))
        check_weights(protocol.metrics, require=protocol.metrics)  # what came may be damaged
    check_weights(protocol.metrics, require=list(cfg.metrics.require))


def _require_what_no_run_says(
    cfg: DictConfig, protocol: Protocol, checkpoint: Path | None, config: DictConfig
) -> None:
    """Refuse to guess where there is no run folder, whose configuration would say more."""
    if config:
        return
    needed = ["data_root", "output"]
    if protocol.degradation is None and protocol.lq_folder is None:
        needed.append("degradation")
    lost = [key for key in needed if not cfg.get(key)]
    if lost:
        what = "without a checkpoint there is" if checkpoint is None else f"{checkpoint} lies in"
        raise ValueError(
            f"{what} no run folder, whose configuration would say more; "
            f"set {', '.join(f'{key}=...' for key in lost)}"
        )


def _digest(ranges: DictConfig) -> str:
    text = OmegaConf.to_yaml(ranges, resolve=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_weights(path: str) -> str:
    return (
        sha256_of(located(path)) if located(path).is_file() else path
    )  # a diffusers folder, `clean`


def sweep_folder(cfg: DictConfig, trained: DictConfig) -> Path | None:
    """Return where a job of a multirun writes: eval/ in a run folder of its own, else None.

    `src.ablation` reads that folder as a run; its configuration is that of the training, with the
    evaluation's under `evaluation`.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    own = OmegaConf.to_container(cfg, resolve=True)
    write_config(folder, OmegaConf.merge(trained, {"evaluation": own}))  # type: ignore[arg-type]
    overrides = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
    write_text(folder / ".hydra" / "overrides.yaml", overrides)  # what labels are made of
    return folder / "eval"


def find_checkpoint(cfg: DictConfig) -> Path:
    """Return the checkpoint that was asked for, or the newest of stage 2.

    Raises:
        FileNotFoundError: There is none.
    """
    if cfg.checkpoint is not None:
        path = Path(cfg.checkpoint)
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint={path}: no such file")
        return path
    path = newest_checkpoint(cfg.runs_dir, stage="supir")
    if path is None:
        raise FileNotFoundError(
            f"{cfg.runs_dir} holds no checkpoint of stage 2; run `make train` or "
            "`python -m src.train experiment=zerosft` first, or set checkpoint=FILE"
        )
    log.info("checkpoint: %s", path)
    return path


if __name__ == "__main__":
    main()
