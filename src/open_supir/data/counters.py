"""Counters shared by the workers of a loader: samples, shortened captions, skips by reason."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from open_supir.data.samples import SampleError
from open_supir.data.shards import StorageError

MAX_WORKERS = 256
EXAMPLES_PER_REASON = 20
REASONS = (
    "too small",
    "too large",
    "not a JPEG, PNG or WebP image",
    "damaged image",
    "not normalised",
    "caption missing",
    "caption not UTF-8",
    "json damaged",
    "member refused",
    "damaged tar",
    "not precomputed",
    "other",
)


@dataclass(frozen=True, kw_only=True)
class SkipLimits:
    """The run stops when a rank skips more than `rate` of `window` samples.

    Windows follow one another, so that a source that goes bad late in a run is noticed too.
    """

    rate: float = 0.01
    window: int = 10_000

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.window < 1:
            raise ValueError(f"need 0 <= rate <= 1 and window >= 1, got {self.rate}, {self.window}")


class LoaderCounters:
    """Counts of one rank, in shared memory.

    Each worker writes its own row, so no lock is needed. Workers read ahead, so the counts run a
    few batches ahead of the training step.
    """

    def __init__(
        self, sources: Sequence[str], *, path: Path | None, limits: SkipLimits | None = None
    ) -> None:
        """Count for `sources`; write examples of skipped samples to the JSONL file `path`."""
        self.sources, self.path, self.limits = list(sources), path, limits or SkipLimits()
        self.skips = torch.zeros(MAX_WORKERS + 1, len(sources), len(REASONS), dtype=torch.int64)
        self.samples = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64)
        self.truncated = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64)
        # Seen and skipped at the start of the window. Workers may move it at the same time, a few
        # samples apart; that is harmless.
        self.window = torch.zeros(2, dtype=torch.int64)
        for table in (self.skips, self.samples, self.truncated, self.window):
            table.share_memory_()

    def count_sample(self, *, truncated: bool) -> None:
        """Count one delivered sample, and whether its caption was shortened."""
        row = _worker_row()
        self.samples[row] += 1
        self.truncated[row] += truncated

    def count_skip(self, source: int, error: SampleError, place: Mapping[str, Any]) -> None:
        """Count a skipped sample of source number `source`; record the first of each reason.

        Raises:
            StorageError: Too many samples were skipped.
        """
        reason = REASONS.index(error.reason if error.reason in REASONS else "other")
        self.skips[_worker_row(), source, reason] += 1
        if self.path is not None and int(self.skips[..., reason].sum()) <= EXAMPLES_PER_REASON:
            name = self.sources[source]
            record = {"source": name, "reason": error.reason, "detail": error.detail[:200]}
            _append_line(self.path, {**record, **place})
        skipped = int(self.skips.sum())
        seen = skipped + int(self.samples.sum())
        if seen - int(self.window[0]) > self.limits.window:
            self.window.copy_(torch.tensor([seen - 1, skipped - 1]))
        start, before = self.window.tolist()
        if skipped - before > self.limits.rate * self.limits.window:
            raise StorageError(
                f"{skipped - before} of the last {seen - start} samples were bad, more than "
                f"{self.limits.rate:.2%} of {self.limits.window}: {self.skipped()}"
            )

    def skipped(self) -> dict[str, int]:
        """Return the skips as "source/reason" -> count, without zeros."""
        totals = self.skips.sum(dim=0)
        return {
            f"{source}/{reason}": int(totals[i, j])
            for i, source in enumerate(self.sources)
            for j, reason in enumerate(REASONS)
            if totals[i, j]
        }


def _worker_row() -> int:
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % MAX_WORKERS


def _append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write, so that workers' lines do not interleave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, (json.dumps(record) + "\n").encode())
    finally:
        os.close(fd)
