"""A run over many photographs: skips what is done, shows progress, stops between two images."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from open_supir.base.files import remove_leftovers
from open_supir.diffusion.samplers import OnStep
from open_supir.inference.captioner import FileCaptioner
from open_supir.inference.folder import Job, printable
from open_supir.inference.records import is_done
from open_supir.inference.restorer import Restorer

log = logging.getLogger(__name__)

# Raised by bad files, full disks, captioners, or for lack of memory. torch raises RuntimeError for
# much else too, but a folder of thousands is not given up for one image.
FILE_ERRORS = (OSError, ValueError, MemoryError, RuntimeError)
Restore = Callable[[Job, OnStep], dict[str, Any]]  # restores a job's files; returns the record


def jobs_left(
    jobs: Sequence[Job], key: str, *, texts: FileCaptioner | None, overwrite: bool, dry_run: bool
) -> list[Job]:
    """Return the jobs that are not done yet; logs those that are, in a dry run all.

    Args:
        jobs: All of them.
        key: See `job_key`.
        texts: Captions from files, which may have changed since; None for other captioners.
        overwrite: Nothing counts as done.
        dry_run: Log what would be restored too.
    """
    left = []
    for job in jobs:
        caption = texts and texts(torch.zeros(3, 1, 1), source=job.source)
        done = not overwrite and is_done(job, key, caption)
        if not done:
            left.append(job)
        if done or dry_run:
            log.info("%s: %s", _arrow(job), "done already" if done else "would be restored")
    return left


def restore_all(
    restorer: Restorer, jobs: Sequence[Job], restore: Restore, *, show_progress: bool
) -> list[str]:
    """Restore one image after the other; returns one line for each that failed.

    The first interrupt ends the run after the image at work.

    Args:
        restorer: Tells how many steps an image takes.
        jobs: What to restore.
        restore: Restores the files of one job.
        show_progress: Draw a bar on stderr.
    """
    for folder in {job.targets[0].parent for job in jobs}:
        remove_leftovers(folder)  # of runs that were killed
    failed: list[str] = []
    total = restorer.options.settings.num_steps * restorer.options.num_samples
    with _progress(show_progress) as progress, _stop_after_this_image() as stopped:
        bar = progress.add_task("restoring", total=len(jobs))
        for number, job in enumerate(jobs):
            if stopped:
                failed.append(f"stopped: the same command goes on with {len(jobs) - number} images")
                break
            try:
                record = restore(job, lambda *_: progress.advance(bar, 1 / total))
            except FILE_ERRORS as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                reason = printable(" ".join(str(reason).split()))
                failed.append(f"{printable(job.source)}: {reason}")
                log.error("%s", failed[-1])
            else:
                for note in record["notes"]:
                    log.warning("%s: %s", printable(job.source), note)
                log.info("%s", _arrow(job))
            progress.update(bar, completed=number + 1)
    return failed


def _arrow(job: Job) -> str:
    return f"{printable(job.source)} -> {', '.join(map(printable, job.targets))}"


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not show,
    )


@contextmanager
def _stop_after_this_image() -> Iterator[list[int]]:
    """Add the first interrupt to the yielded list; a second one stops at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        log.warning("finishing this image; interrupt again to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
