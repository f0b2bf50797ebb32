"""Restore images: python -m src.restore input=FILE_OR_DIR output=DIR.

Keeps the tree of the input folder; a bad file is reported and the others go on.
"""

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from src.cli import command, pick_device
from src.evaluate import find_checkpoint
from src.images import list_images, read_image, to_uint8, to_unit, write_image
from src.inference import Restorer

log = logging.getLogger(__name__)

BAD_INPUT = (OSError, ValueError)


@command("restore")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit status 1 if any image failed."""
    failed = restore(cfg)
    if failed:
        raise ValueError(f"{len(failed)} images failed: " + "; ".join(failed))


def restore(cfg: DictConfig) -> list[str]:
    """Restore every image of the input into the output folder; returns what failed and why."""
    source, output = Path(cfg.input), Path(cfg.output)
    paths = list_images(source)
    targets = output_paths(paths, source, output)
    checkpoint = find_checkpoint(cfg)
    restorer = Restorer.from_checkpoint(
        checkpoint,
        weights=OmegaConf.to_container(cfg.weights),  # type: ignore[arg-type]
        settings=instantiate(cfg.get("sampler"), _convert_="all"),
        captioner=instantiate(cfg.captioner, _convert_="all"),
        color_fix=cfg.color_fix,
        device=pick_device(cfg.device),
    )
    failed: list[str] = []
    with Progress(transient=True) as progress:
        for path in progress.track(paths, description="restoring"):
            target = targets[path]
            if target.exists() and not cfg.overwrite:
                log.info("%s exists, kept (overwrite=true restores it again)", target)
                continue
            try:
                result = restorer(
                    to_unit(read_image(path)), seed=cfg.seed, scale=cfg.scale, source=path
                )
                metadata = {
                    "restored from": path.name,
                    "checkpoint": str(checkpoint),
                    "prompt": result.prompt,
                    "seed": str(result.seed),
                    "settings": str(result.settings),
                }
                write_image(target, to_uint8(result.restored), metadata=metadata)
            except BAD_INPUT as error:
                failed.append(f"{path}: {error}" if str(path) not in str(error) else str(error))
                log.error("%s", failed[-1])
                continue
            log.info("%s -> %s", path, target)
    return failed


def output_paths(paths: list[Path], source: Path, output: Path) -> dict[Path, Path]:
    """Return where each image goes: the input's tree below `output`, always PNG.

    Two images that differ in suffix only keep it in their names, so that none replaces another.
    """
    root = source if source.is_dir() else source.parent
    stems = [path.with_suffix("") for path in paths]
    targets = {}
    for path, stem in zip(paths, stems, strict=True):
        name = f"{path.name}.png" if stems.count(stem) > 1 else f"{path.stem}.png"
        targets[path] = output / path.parent.relative_to(root) / name
    return targets


if __name__ == "__main__":
    main()
