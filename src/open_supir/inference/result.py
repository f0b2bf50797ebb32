"""Input and result of one restoration."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from open_supir.diffusion.samplers import OnStep
from open_supir.inference.disagreement import LEAST_SAMPLES, disagreement
from open_supir.inference.memory import Rung
from open_supir.inference.options import RestoreOptions


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """The result of a restoration."""

    # one or more images in [0, 1], shaped like the input except for scaling
    samples: tuple[Tensor, ...]
    cleaned: Tensor  # the input cleaned by the robust encoder alone, in [0, 1]; same shape
    caption: str  # the caption used, without the quality words
    prompt: str  # the full positive prompt; chunks are joined by " | "
    options: RestoreOptions  # the options used: as requested, after any reductions to save memory
    given_up: tuple[Rung, ...] = ()  # these reductions, in order
    # Whether the result is as requested. False if tiles were made smaller, or if the autoencoder's
    # attention saw only tiles.
    is_exact: bool = True
    seconds: Mapping[str, float]  # wall time by stage

    @property
    def restored(self) -> Tensor:
        """The first sample."""
        return self.samples[0]

    @cached_property
    def disagreement(self) -> Tensor | None:
        """How much the samples differ, (H, W) in 8-bit levels; None for one or two of them."""
        return disagreement(self.samples) if len(self.samples) >= LEAST_SAMPLES else None

    @property
    def average(self) -> Tensor:
        """The mean of the samples."""
        return torch.stack(self.samples).mean(dim=0)


@dataclass
class Call:
    """One restoration: its inputs, and state that is kept when an attempt runs out of memory."""

    image: Tensor  # (1, 3, H, W)
    caption: str | None
    source: Path | None
    on_step: OnStep | None
    seconds: dict[str, float]
    mask: Tensor | None = None  # (1, 1, H, W): where to restore; None everywhere
    soft: Tensor | None = None  # the same, feathered
    stage: str = ""  # where it is

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to the stage's total, with the device's work."""
        self.stage, start = stage, time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
