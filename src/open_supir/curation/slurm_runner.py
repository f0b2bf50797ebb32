"""Runner on Slurm: job arrays through submitit, on a cluster whose nodes share the output."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from open_supir.curation.runners import ATTEMPTS, OpenError, Outcome, describe, open_step, try_unit
from open_supir.curation.work import CurationStep, Unit, is_done

log = logging.getLogger(__name__)

EXTRA = "install with: pip install -e '.[curation]'"
POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class SlurmRunner:
    """One job array per step; each job does its share of the units one by one.

    Units left undone by killed or timed-out jobs go into the next array.
    """

    logs: str  # folder for submitit's scripts and logs, visible to all nodes
    jobs: int = 64  # number of jobs in an array
    at_once: int | None = None  # maximum number of jobs running at a time; None: Slurm decides
    # `slurm`; `local` runs the jobs as processes here; None uses Slurm if available
    cluster: str | None = "slurm"
    # parameters of submitit's AutoExecutor: timeout_min, cpus_per_task, mem_gb, gpus_per_node,
    # slurm_partition, slurm_account and so on
    parameters: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = ATTEMPTS  # maximum number of arrays per step
    poll_s: float = POLL_SECONDS  # seconds between polls of the jobs

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.attempts < 1:
            raise ValueError(
                f"runner needs jobs and attempts >= 1, got {self.jobs} and {self.attempts}"
            )

    def run(self, step: CurationStep, units: Sequence[Unit], root: Path) -> Iterator[Outcome]:
        """Yield the outcome of every unit once its job has ended; see Runner.

        Raises:
            ImportError: submitit is not installed (extra `curation`).
        """
        try:
            import submitit
        except ImportError as error:
            raise ImportError(f"runner=slurm needs submitit; {EXTRA}") from error
        root, left = root.resolve(), list(units)
        for attempt in range(1, self.attempts + 1):
            executor = submitit.AutoExecutor(folder=self.logs, cluster=self.cluster)
            executor.update_parameters(name=f"curate-{step.name}", **self.parameters)
            if self.at_once is not None:
                executor.update_parameters(slurm_array_parallelism=self.at_once)
            shares = [left[n :: self.jobs] for n in range(min(self.jobs, len(left)))]
            jobs = executor.map_array(SlurmJob(step, root), shares)
            log.info("%s: %d jobs submitted, logs in %s", step.name, len(jobs), self.logs)
            failed: list[Unit] = []
            errors: dict[str, str] = {}
            running = dict(zip(jobs, shares, strict=True))
            try:
                for job, share in self._ended(running):
                    errors |= _errors(job)
                    for unit in share:
                        if is_done(root, step, unit):
                            yield Outcome(unit.name, attempt)
                        else:
                            failed.append(unit)
                            problem = f"job {job.job_id} ended before it was done"
                            errors.setdefault(unit.name, problem)
            finally:
                for job in running:  # this run was interrupted; the next one submits new jobs
                    job.cancel(check=False)
            left = failed
            if not left:
                return
        for unit in left:
            yield Outcome(unit.name, self.attempts, errors[unit.name])

    def _ended(self, running: dict[Any, list[Unit]]) -> Iterator[tuple[Any, list[Unit]]]:
        """Yield jobs with their units as they end."""
        while running:
            for job in [job for job in running if job.done()]:
                yield job, running.pop(job)
            if running:
                time.sleep(self.poll_s)


def _errors(job: Any) -> dict[str, str]:
    """Return the errors of a finished job's failed units, by name.

    Raises:
        OpenError: The step could not load what it needs; neither will other jobs.
    """
    try:
        results = job.results()[0]
    except Exception as error:  # from submitit or from the job itself
        if "OpenError" in str(error):
            lines = [line for line in str(error).splitlines() if "OpenError: " in line]
            raise OpenError(lines[-1].partition("OpenError: ")[2]) from error
        log.warning("job %s: %s", job.job_id, describe(error)[:300])
        return {}
    return results


class SlurmJob:
    """The callable run by each job; submitit requeues preempted jobs."""

    def __init__(self, step: CurationStep, root: Path) -> None:
        self.step, self.root = step, root

    def __call__(self, units: Sequence[Unit]) -> dict[str, str]:
        """Do the units; return errors by unit."""
        process = open_step(self.step)
        errors = {}
        for unit in units:
            error = try_unit(process, self.step, unit, self.root)
            if error is not None:
                errors[unit.name] = error
        return errors

    def checkpoint(self, units: Sequence[Unit]) -> Any:
        """Requeue the job; finished units are skipped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, units)
