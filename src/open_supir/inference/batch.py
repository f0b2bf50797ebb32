"""Restore many photographs: skip finished ones, show progress, stop cleanly between images."""

import errno
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from open_supir.base.files import printable, remove_leftovers
from open_supir.diffusion.samplers import OnStep
from open_supir.inference.captioner import FileCaptioner
from open_supir.inference.folder import Job
from open_supir.inference.records import claimed, is_done
from open_supir.inference.restorer import Restorer

log = logging.getLogger(__name__)

# Raised for bad files, full disks, captioner failures, overflow or lack of memory. torch raises
# RuntimeError for much else too, but one image must not end a run over thousands.
FILE_ERRORS = (OSError, ValueError, MemoryError, RuntimeError, FloatingPointError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later image would be written either
Restore = Callable[[Job, OnStep], dict[str, Any]]  # restores a job's files; returns the record


def jobs_left(
    jobs: Sequence[Job], key: str, *, texts: FileCaptioner | None, overwrite: bool, dry_run: bool
) -> tuple[list[Job], list[str]]:
    """Return the jobs that are not done yet, and one line for each that cannot be done.

    Logs finished ones, and all in a dry run; and how many there are, unless some are to be done.

    Args:
        texts: The captioner if it reads files, which may have changed since; else None.
        overwrite: Treat no job as done.
        dry_run: Also log what would be restored.
    """
    left, failed = [], []
    for job in jobs:
        try:
            caption = texts and texts(torch.zeros(3, 1, 1), source=job.source)
            done = not overwrite and is_done(job, key, caption)
            if not done:
                claimed(job, overwrite=overwrite)
        except FILE_ERRORS as error:
            failed.append(_failure(job, error))
            continue
        if not done:
            left.append(job)
        if done or dry_run:
            log.info("%s: %s", _arrow(job), "already done" if done else "would be restored")
    if dry_run or not left:
        log.info("%d to restore, %d already done", len(left), len(jobs) - len(left + failed))
    return left, failed


def restore_all(
    restorer: Restorer, jobs: Sequence[Job], restore: Restore, *, show_progress: bool
) -> list[str]:
    """Restore one image after another; return one line for each failure.

    The first interrupt ends the run after the current image; a full or read-only disk at once.

    Args:
        restorer: Its options give the number of steps per image.
    """
    for folder in {job.targets[0].parent for job in jobs}:
        remove_leftovers(folder)  # of runs that were killed
    failed: list[str] = []
    total = restorer.options.sampler.num_steps * restorer.options.num_samples
    with _progress(show_progress) as progress, _stop_after_this_image() as stopped:
        bar = progress.add_task("restoring", total=len(jobs))
        for number, job in enumerate(jobs):
            if stopped:
                failed.append(f"stopped: rerun the command for {len(jobs) - number} more images")
                break
            try:
                record = restore(job, lambda *_: progress.advance(bar, 1 / total))
            except FILE_ERRORS as error:
                failed.append(_failure(job, error))
                if getattr(error, "errno", None) in NO_ROOM:
                    place = printable(job.targets[0].parent)
                    failed.append(
                        f"stopped: no more can be written to {place}; make room and "
                        f"rerun the command for {len(jobs) - number} images"
                    )
                    break
            else:
                for note in record["notes"]:
                    log.warning("%s: %s", printable(job.source), note)
                log.info("%s", _arrow(job))
            progress.update(bar, completed=number + 1)
    return failed


def _failure(job: Job, error: BaseException) -> str:
    """Log why a job failed, and return it as one line."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = f"{printable(job.source)}: {printable(' '.join(str(reason).split()))}"
    log.error("%s", line)
    return line


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
    """Append the first interrupt to the yielded list; a second one stops immediately."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        log.warning("finishing this image; interrupt again to stop immediately")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
