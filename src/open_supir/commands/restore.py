"""Restore photographs: python -m src.restore input=FILE_OR_DIR output=DIR.

Keeps the tree of the input folder, skips what is done, goes on where it was stopped; a bad file is
one line, and the others go on. Under torchrun each process takes its share of the files.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from open_supir.base.cli import command, pick_device
from open_supir.base.dtypes import parse_dtype
from open_supir.base.files import remove_leftovers, sha256_of
from open_supir.base.images.read import quieten_readers
from open_supir.base.places import located
from open_supir.commands.evaluate import find_checkpoint
from open_supir.diffusion import RestoreSettings
from open_supir.inference import RestoreOptions, Restorer
from open_supir.inference.caption_cache import CachedCaptioner
from open_supir.inference.checkpoint import read_recipe
from open_supir.inference.folder import (
    Job,
    find_photos,
    is_done,
    job_key,
    plan_jobs,
    printable,
    restore_file,
)
from open_supir.webui.studio import FILE_ERRORS

log = logging.getLogger(__name__)


@command("restore")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit status 1 if any image failed."""
    failed = restore(cfg)
    if failed:
        sys.exit(f"error: {len(failed)} failed:\n" + "\n".join(failed))  # Hydra has no say in it


def restore(cfg: DictConfig) -> list[str]:
    """Restore every image of the input into the output folder; returns one line a failure.

    Under torchrun this is a process's share, and the first process returns everyone's failures.
    """
    rank, world = (int(os.environ.get(name, one)) for name, one in (("RANK", 0), ("WORLD_SIZE", 1)))
    together = world > 1 and dist.is_torchelastic_launched()
    if together:
        dist.init_process_group("gloo", timeout=timedelta(days=30))
    failed = _restore_share(cfg, rank, world)
    if not together:
        return failed
    # torchrun ends all processes when one ends badly: none may before all are done
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, failed)
    dist.destroy_process_group()
    return [line for lines in gathered for line in lines] if rank == 0 else []


def _restore_share(cfg: DictConfig, rank: int, world: int) -> list[str]:
    """Restore one process's share of the images; returns one line a failure."""
    quieten_readers()
    source, output = Path(cfg.input), Path(cfg.output)
    root, paths, failed = find_photos(source, output)
    checkpoint = find_checkpoint(cfg)
    options, model = options_of(cfg, checkpoint), model_of(cfg, checkpoint)
    key = job_key(options, model | {"captioner": str(cfg.captioner)})
    failed = failed if rank == 0 else []  # folders that cannot be read are everyone's
    jobs = plan_jobs(paths, root, output, options)[rank::world]
    left = _not_done(cfg, jobs, key)
    if cfg.dry_run or not left:
        log.info("%d to restore, %d done already", len(left), len(jobs) - len(left))
        return failed

    restorer = build_restorer(cfg, checkpoint, options)
    output.mkdir(parents=True, exist_ok=True)
    for folder in {job.targets[0].parent for job in left}:
        remove_leftovers(folder)  # of runs that were killed
    total = options.settings.num_steps * options.num_samples
    with _progress(rank) as progress, _stop_after_this_image() as stopped:
        steps = progress.add_task("restoring", total=len(left))
        for number, job in enumerate(left):
            if stopped:
                failed.append(f"stopped: the same command goes on with {len(left) - number} images")
                break

            def on_step(*_: Any) -> None:
                progress.advance(steps, 1 / total)

            line = _restore_one(restorer, job, cfg, key, model, on_step)
            failed += [line] if line else []
            progress.update(steps, completed=number + 1)
    return failed


def _not_done(cfg: DictConfig, jobs: list[Job], key: str) -> list[Job]:
    """Return the jobs that are left, and say what is done, or would be."""
    texts = instantiate(cfg.captioner) if "FileCaptioner" in cfg.captioner._target_ else None
    left = []
    for job in jobs:
        caption = texts and texts(torch.zeros(3, 1, 1), source=job.source)
        done = not cfg.overwrite and is_done(job, key, caption)
        if not done:
            left.append(job)
        if done or cfg.dry_run:
            what = "done already" if done else "would be restored"
            targets = ", ".join(map(printable, job.targets))
            log.info("%s -> %s: %s", printable(job.source), targets, what)
    return left


def _restore_one(
    restorer: Restorer, job: Job, cfg: DictConfig, key: str, model: dict, on_step: Any
) -> str | None:
    """Restore one file; returns a line where that failed."""
    try:
        record = restore_file(
            restorer,
            job,
            restorer.options,
            output=Path(cfg.output),
            key=key,
            model=model,
            max_pixels=cfg.max_pixels,
            max_output_pixels=cfg.max_output_pixels,
            on_step=on_step,
        )
    except FILE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        line = f"{printable(job.source)}: {printable(' '.join(str(reason).split()))}"
        log.error("%s", line)
        return line
    for note in record["notes"]:
        log.warning("%s: %s", printable(job.source), note)
    log.info("%s -> %s", printable(job.source), ", ".join(map(printable, job.targets)))
    return None


def options_of(cfg: DictConfig, checkpoint: Path) -> RestoreOptions:
    """Return the options of a configuration, over those that the checkpoint recorded.

    Raises:
        ValueError: One is out of its range.
    """
    recorded = dict(read_recipe(checkpoint)["restore"])
    asked: Any = OmegaConf.to_container(cfg.sampler, resolve=True)
    asked = {name: value for name, value in asked.items() if value != "???"}
    if asked.pop("_target_", None) is None:  # sampler=recorded, and what replaces parts of it
        asked = {**recorded["settings"], **asked}
    given: Any = OmegaConf.to_container(cfg.options, resolve=True)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return RestoreOptions(**{**recorded, **given, "settings": RestoreSettings(**asked)})
    except TypeError as error:  # an unknown name added by +options.NAME
        raise ValueError(f"options or sampler: {error}") from error


def model_of(cfg: DictConfig, checkpoint: Path) -> dict[str, str | None]:
    """Return what names the model in records: the checkpoint, and what replaces parts of it, by
    name and hash; folders of this machine are nobody's business.
    """
    model = {
        "checkpoint": checkpoint.name,
        "sha256": sha256_of(checkpoint),
        "dtype": cfg.dtype,
        "quantize": cfg.quantize,
    }
    for name, value in cfg.weights.items():
        if value:
            file = located(value)
            known = sha256_of(file) if file.exists() else None  # "clean", or an error in a moment
            model |= {f"weights.{name}": file.name, f"weights.{name}.sha256": known}
    return model


def build_restorer(cfg: DictConfig, checkpoint: Path, options: RestoreOptions) -> Restorer:
    """Load the networks and the captioner that a configuration asks for."""
    dtype = parse_dtype(cfg.dtype)
    captioner = instantiate(cfg.captioner, _convert_="all")
    if cfg.caption_cache and hasattr(captioner, "identity"):
        captioner = CachedCaptioner(captioner, cfg.caption_cache)
    device = pick_device(cfg.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return Restorer.from_checkpoint(
        checkpoint,
        weights=OmegaConf.to_container(cfg.weights),  # type: ignore[arg-type]
        captioner=captioner,
        device=device,
        dtype=dtype,
        quantize=cfg.quantize,
        **{name: getattr(options, name) for name in vars(options)},
    )


def _progress(rank: int) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=rank > 0,
    )


@contextmanager
def _stop_after_this_image() -> Iterator[list[int]]:
    """Turn the first interrupt into an entry of the yielded list; the second one stops at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        log.warning("finishing this image; once more to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
