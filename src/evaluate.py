"""Evaluate a checkpoint: python -m src.evaluate (make eval).

Restores the images of a protocol by the newest checkpoint, by the robust encoder and by the
ordinary encoder alone, and by doing nothing; the table goes into the checkpoint's run folder.
"""

import hashlib
import logging
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.cli import command, pick_device
from src.evaluation import Protocol, check_weights, load_samples, run_benchmark, write_report
from src.evaluation.weights import fetch
from src.images import to_signed, to_unit
from src.inference import Restorer
from src.runs import newest_checkpoint, read_config, run_folder, write_config

log = logging.getLogger(__name__)


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    print(evaluate(cfg))


def evaluate(cfg: DictConfig) -> str:
    """Evaluate one checkpoint; returns the table as Markdown."""
    protocol: Protocol = instantiate(cfg.protocol, _convert_="all")
    missing = check_weights(protocol.metrics, require=list(cfg.metrics.require))
    if cfg.metrics.download and missing:
        fetch(file for files in missing.values() for file in files)

    checkpoint = find_checkpoint(cfg)
    run = run_folder(checkpoint)
    config = OmegaConf.create(read_config(run))
    if not config:  # a SUPIR file, or one that was moved
        lost = [key for key in ("data_root", "output", "degradation") if not cfg.get(key)]
        if lost:
            raise ValueError(
                f"{checkpoint} lies in no run folder, whose configuration would say more; "
                f"set {', '.join(f'{key}=...' for key in lost)}"
            )
    out_dir = Path(cfg.output) if cfg.output else sweep_folder(cfg, config) or run / "eval"
    options = {key: value for key, value in cfg.options.items() if value is not None}
    restorer = Restorer.from_checkpoint(
        checkpoint,
        weights=OmegaConf.to_container(cfg.weights),  # type: ignore[arg-type]
        settings=instantiate(cfg.get("sampler"), _convert_="all"),
        captioner=instantiate(cfg.captioner),
        device=pick_device(cfg.device),
        seed=cfg.seed,
        **options,
    )
    hq, lq = protocol.folders(Path(cfg.data_root or config.data.root))
    pipeline = instantiate(cfg.get("degradation") or config.degradation, _convert_="all")

    def degrade(image: Tensor, seed: int) -> Tensor:
        return to_unit(pipeline(to_signed(image), torch.tensor([seed])))

    records = run_benchmark(
        load_samples(protocol, hq=hq, lq=lq, degrade=degrade),
        {
            "lq": lambda sample: sample.lq,
            "ordinary_encoder": lambda sample: restorer.clean(sample.lq, robust=False),
            "robust_encoder": lambda sample: restorer.clean(sample.lq),
            "restored": lambda sample: restorer(sample.lq, source=sample.source).restored,
        },
        protocol.metrics,
        out_dir=out_dir,
        run=str(run),
        settings={
            **protocol.settings(),
            "restore_seed": cfg.seed,
            "checkpoint": sha256(checkpoint),
            "captioner": OmegaConf.to_container(cfg.captioner),
            "options": restorer.options.described(),
        },
        border=protocol.border,
        save_images=cfg.save_images,
        device=restorer.device,
    )
    log.info("report: %s", out_dir / "table.md")
    return write_report(records, out_dir, title=f"{run.name}: {protocol.name}")


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


def sha256(path: Path) -> str:
    """Return the hash of a file's content, for the records."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
