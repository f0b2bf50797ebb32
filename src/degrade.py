"""Make low-quality images: python -m src.degrade input=DIR output=DIR degradation=supir_q seed=0.

Writes a PNG an image and `parameters.jsonl`, one row an image. From the row, or from the seed in
it, `DegradationPipeline` makes the same LQ again.
"""

import json
import logging
import os
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from src.cli import command
from src.degradation import DegradationParams, DegradationPipeline
from src.images import list_images, read_image, to_signed, to_unit, write_image

log = logging.getLogger(__name__)

ROWS = "parameters.jsonl"


def degrade_folder(
    pipeline: DegradationPipeline, source: Path, target: Path, *, seed: int, device: torch.device
) -> list[Path]:
    """Write the LQ of every image below `source`, and their parameters; return the files written.

    Image i, in sorted order, has seed `seed` + i. An unreadable image is named in the log and left
    out; the seeds of the others stay.

    Raises:
        ValueError: Two images would be written to one file.
    """
    images = list_images(source)
    base = source if source.is_dir() else source.parent
    names = [path.relative_to(base).with_suffix(".png") for path in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: several images would be written to {twice}; rename one")
    written, rows = [], []
    for i, (path, name) in enumerate(zip(images, names, strict=True)):
        try:
            image = read_image(path)
        except ValueError as error:
            log.warning("left out: %s", error)
            continue
        hq = to_signed(image)[None].to(device)
        params = pipeline.draw(torch.tensor([seed + i]), size=(hq.shape[-2], hq.shape[-1]))
        lq = to_unit(pipeline.apply(hq, params))[0].cpu()
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(target / name, lq)
        written.append(target / name)
        row = {"file": name.as_posix(), "source": path.relative_to(base).as_posix()}
        rows.append(row | params.rows()[0])
        log.info("%s  %s", name, params.summaries()[0])
    _write_rows(target / ROWS, rows)
    return written


def replay(pipeline: DegradationPipeline, row: dict, image: Tensor) -> Tensor:
    """Make one LQ (3, H, W) in [0, 1] again, from a row of `parameters.jsonl` and a uint8 image."""
    names = {"file", "source"}
    params = DegradationParams.from_rows([{k: v for k, v in row.items() if k not in names}])
    return to_unit(pipeline.apply(to_signed(image)[None], params))[0]


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


@command("degrade")
def main(cfg: DictConfig) -> None:
    source, target = Path(cfg.input).expanduser(), Path(cfg.output).expanduser()
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are both {source}; LQ would replace the originals")
    pipeline = instantiate(cfg.degradation, _convert_="all")
    written = degrade_folder(
        pipeline, source, target, seed=cfg.seed, device=torch.device(cfg.device)
    )
    log.info("%d images and %s in %s", len(written), ROWS, target)


if __name__ == "__main__":
    main()
