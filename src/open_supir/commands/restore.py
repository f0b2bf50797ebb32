"""Restore photographs: input=FILE_OR_FOLDER output=FOLDER.

Keeps the folder structure of the input, skips finished images, and continues where it was stopped.
A bad file is reported in one line. Under torchrun, each process takes its share of the files.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_supir.base.cli import command, pick_device, picked, plain, require

if TYPE_CHECKING:
    from open_supir.inference.processes import Process


@command("restore")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit with status 1 if any image failed."""
    if failed := restore(cfg):
        raise SystemExit(f"error: {len(failed)} failed:\n" + "\n".join(failed))


def restore(cfg: DictConfig) -> list[str]:
    """Restore every image of the input into the output folder; returns one line per failure.

    Under torchrun, the first process returns the failures of all processes, and the others none.
    """
    from open_supir.inference.processes import this_process  # imports torch: too slow for --help

    if cfg.dry_run and cfg.sizes is not None:
        rehearse(cfg)
        return []
    require(cfg, "input", "output")
    with this_process() as process:
        return process.gathered(_restore_share(cfg, process))


def rehearse(cfg: DictConfig, paths: Sequence[Path] = ()) -> None:
    """Print what restoring these files, or images of `sizes`, would cost on a GPU."""
    from open_supir.rehearsal.restoring_report import SETTINGS, dry_run_restoring, read_sizes

    print(dry_run_restoring(picked(cfg, *SETTINGS), read_sizes(plain(cfg.sizes), paths)))


def _restore_share(cfg: DictConfig, process: "Process") -> list[str]:
    from open_supir.base.files import check_writable
    from open_supir.base.images.inputs import find_photos
    from open_supir.base.images.read import quieten_readers
    from open_supir.inference.batch import jobs_left, restore_all
    from open_supir.inference.folder import plan_jobs
    from open_supir.inference.model import MODEL_SETTINGS, Model, cached
    from open_supir.inference.records import job_key, restore_file

    quieten_readers()
    output = Path(cfg.output)
    photos = process.from_first(lambda: find_photos(Path(cfg.input), output))
    device = pick_device(cfg.device)
    model = Model.find(**picked(cfg, *MODEL_SETTINGS), device=device)
    options = model.options(plain(cfg.sampler), plain(cfg.options))
    described = process.from_first(model.described)
    key = job_key(options, described | {"captioner": str(cfg.captioner)})
    planned = process.from_first(lambda: plan_jobs(photos.paths, photos.root, output, options))
    jobs = process.share(planned)
    build_captioner = partial(instantiate, cfg.captioner, _convert_="all")
    texts = build_captioner() if cfg.captioner._target_.endswith("FileCaptioner") else None
    left, failed = jobs_left(jobs, key, texts=texts, overwrite=cfg.overwrite, dry_run=cfg.dry_run)
    problems = photos.problems if process.rank == 0 else []
    if cfg.dry_run and left and process.rank == 0:
        rehearse(cfg, [job.source for job in left])
    if cfg.dry_run or not left:
        return problems + failed
    check_writable(output)
    captioner = cached(texts or build_captioner(), cfg.caption_cache)
    restorer = model.load(options, captioner=captioner, device=device)
    limits = picked(cfg, "max_pixels", "max_output_pixels", "overwrite")
    restore_job = partial(restore_file, restorer, output=output, key=key, model=described, **limits)
    failed += restore_all(restorer, left, restore_job, show_progress=process.rank == 0)
    return problems + failed


if __name__ == "__main__":
    main()
