"""Make low-quality images: input=FOLDER output=FOLDER degradation=supir_q seed=0.

Writes one PNG per image, `parameters.jsonl` with one row per image, and `degradation.yaml`, the
ranges and switches in use. The same seed makes the same images again, and so do the rows, which may
be edited: input=FOLDER output=OTHER parameters=FOLDER/parameters.jsonl.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from open_supir.base.cli import command, pick_device
from open_supir.base.files import write_text
from open_supir.base.images import list_images, read_image, to_signed, to_unit
from open_supir.base.images.write import write_image
from open_supir.data.order import keyed_hash
from open_supir.degradation import DegradationParams, DegradationPipeline

log = logging.getLogger(__name__)

ROWS = "parameters.jsonl"
RANGES = "degradation.yaml"
Rows = Mapping[str, DegradationParams]


def degrade_folder(
    pipeline: DegradationPipeline,
    source: Path,
    target: Path,
    *,
    seed: int,
    device: torch.device,
    rows: Rows | None = None,
) -> tuple[list[Path], list[str]]:
    """Write the LQ of every image below `source`, and their parameters.

    Parameters are drawn from `seed` and the image's name, or taken from `rows` by that name: the
    other images in the folder do not matter. A bad image is named in the log and left out.

    Returns:
        The files written, and what failed and why.

    Raises:
        ValueError: Two images would be written to one file.
    """
    images = list_images(source)
    base = source if source.is_dir() else source.parent
    names = [path.relative_to(base).with_suffix(".png") for path in images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: several images would be written to {twice}; rename one")
    written, failed, lines = [], [], []
    for path, name in zip(images, names, strict=True):
        key = path.relative_to(base).as_posix()
        try:
            hq = to_signed(read_image(path))[None].to(device)
            params = _params(pipeline, hq, key, seed, rows)
            lq = to_unit(pipeline.apply(hq, params))[0].cpu()
        except ValueError as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            log.warning("left out: %s", failed[-1])
            continue
        write_image(target / name, lq)
        written.append(target / name)
        row = {"file": name.as_posix(), "source": key} | params.rows()[0]
        lines.append(json.dumps(row) + "\n")
        log.info("%s  %s", name, params.summaries()[0])
    write_text(target / ROWS, "".join(lines))
    return written, failed


def _params(
    pipeline: DegradationPipeline, hq: Tensor, key: str, seed: int, rows: Rows | None
) -> DegradationParams:
    if rows is None:
        seeds = torch.tensor([image_seed(seed, key)])
        return pipeline.draw(seeds, size=(hq.shape[-2], hq.shape[-1]))
    if key not in rows:
        raise ValueError(f"no row of the parameters has the source {key!r}")
    return rows[key]


def image_seed(seed: int, name: str) -> int:
    """Return the 63-bit seed of an image, by its path below the input folder."""
    return keyed_hash("degrade", seed, name, size=8) >> 1


def read_rows(path: Path) -> Rows:
    """Read parameters by source from a file that this command wrote.

    Raises:
        ValueError: A line is no row of parameters; names it.
    """
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            params = {key: value for key, value in row.items() if key not in ("file", "source")}
            rows[row["source"]] = DegradationParams.from_rows([params])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: no row of parameters as src.degrade writes them "
                f"({type(error).__name__}: {error})"
            ) from error
    return rows


@command("degrade")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit status 1 if any image failed."""
    source, target = Path(cfg.input).expanduser(), Path(cfg.output).expanduser()
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are both {source}; LQ would replace the originals")
    pipeline = instantiate(cfg.degradation, _convert_="all")
    rows = None if cfg.parameters is None else read_rows(Path(cfg.parameters).expanduser())
    device = pick_device(cfg.device)
    written, failed = degrade_folder(
        pipeline, source, target, seed=cfg.seed, device=device, rows=rows
    )
    write_text(target / RANGES, OmegaConf.to_yaml(cfg.degradation, resolve=True))
    log.info("%d images, %s and %s in %s", len(written), ROWS, RANGES, target)
    if failed:
        raise ValueError(f"{len(failed)} images failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
