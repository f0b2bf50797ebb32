"""Degrade the images of a folder, and read the parameters that reproduce them."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.files import write_text
from open_supir.base.images import list_images, read_image, to_signed, to_unit
from open_supir.base.images.write import write_image
from open_supir.base.rng import keyed_hash
from open_supir.degradation.params import DegradationParams
from open_supir.degradation.pipeline import DegradationPipeline

log = logging.getLogger(__name__)

ROWS = "parameters.jsonl"
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
    """Write the LQ of every image below `source`, and the parameters.

    Parameters are drawn from `seed` and the image's name, or taken from `rows` by that name, so
    they do not depend on the other images in the folder. A bad image is logged and left out.

    Returns:
        The files written, and the messages of what failed.

    Raises:
        ValueError: Two images would be written to the same file.
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
    """Return the 63-bit seed of an image from its path below the input folder."""
    return keyed_hash("degrade", seed, name, size=8) >> 1


def read_rows(path: Path) -> Rows:
    """Read the parameters of each source from a file that `degrade_folder` wrote.

    Raises:
        ValueError: A line is not a row of parameters; the message names it.
    """
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            params = {key: value for key, value in row.items() if key not in ("file", "source")}
            rows[row["source"]] = DegradationParams.from_rows([params])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a row of parameters as src.degrade writes them "
                f"({type(error).__name__}: {error})"
            ) from error
    return rows
