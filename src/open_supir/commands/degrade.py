"""Make low-quality images: input=FOLDER output=FOLDER degradation=supir_q.

Writes one PNG per image, `parameters.jsonl` with one row per image, `degradation.yaml` with the
ranges and switches used, and `degraded.jsonl` with the hashes of these, so that only they are ever
replaced. The same seed reproduces the images; so do the rows, which may be edited:
input=FOLDER output=OTHER parameters=FOLDER/parameters.jsonl.
"""

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, pick_device, require
from open_supir.degradation.folder import RANGES, ROWS, degrade_folder, read_rows

log = logging.getLogger(__name__)


@command("degrade")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit with status 1 if any image failed."""
    require(cfg, "input", "output")
    source, target = Path(cfg.input), Path(cfg.output)
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are both {source}: LQ would replace the originals")
    pipeline = instantiate(cfg.degradation, _convert_="all")
    rows = None if cfg.parameters is None else read_rows(Path(cfg.parameters))
    device = pick_device(cfg.device)
    written, failed = degrade_folder(
        pipeline,
        source,
        target,
        seed=cfg.seed,
        device=device,
        rows=rows,
        ranges=OmegaConf.to_yaml(cfg.degradation, resolve=True),
        max_pixels=cfg.max_pixels,
        overwrite=cfg.overwrite,
    )
    log.info("%d images, %s and %s in %s", len(written), ROWS, RANGES, target)
    if failed:
        total = len(written) + len(failed)
        raise ValueError(f"{len(failed)} of {total} images failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
