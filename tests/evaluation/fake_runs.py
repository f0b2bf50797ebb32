"""Run folders as training leaves them, made without training."""

import json
from pathlib import Path

import torch

from open_supir.base.images.write import write_image
from open_supir.evaluation.records import Record, write_records


def make_run(
    path: Path,
    *,
    seed: int = 0,
    connector: str = "zerosft",
    loss: float = 1.0,
    psnr: dict[str, float] | None = None,
    pictures: tuple[str, ...] = (),
) -> Path:
    """Write a run folder: config, overrides, metrics.csv, summary.json, records, pictures."""
    (path / ".hydra").mkdir(parents=True)
    (path / "csv").mkdir()
    (path / ".hydra" / "config.yaml").write_text(
        f"seed: {seed}\nconnector:\n  name: {connector}\nrun_dir: {path}\n"
    )
    overrides = ["experiment=zerosft", f"connector={connector}", f"seed={seed}"]
    (path / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    rows = [f"0,{step},{loss * (1 + 10 / step)}," for step in range(1, 21)]
    rows += [f"0,10,,{loss * 1.2}", f"0,20,,{loss}"]
    (path / "csv" / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss\n" + "\n".join(rows) + "\n"
    )
    (path / "summary.json").write_text(
        json.dumps({"experiment": "zerosft", "step": 20, "val/loss": loss})
    )
    if psnr is not None:
        records = [
            Record(
                image=image,
                method="restored",
                metric="psnr",
                value=value,
                run=path.name,
                settings={"protocol": "demo"},
                status="ok",
                reason="",
            )  # fmt: skip
            for image, value in psnr.items()
        ]
        write_records(records, path / "eval" / "records.jsonl")
    for index, name in enumerate(pictures):
        write_image(path / "pictures" / name, torch.full((3, 8, 12), index / 10 + loss / 10))
    return path
