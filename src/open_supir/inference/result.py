"""What one restoration is given and what it gives."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from open_supir.diffusion import SamplerSettings
from open_supir.diffusion.samplers import OnStep
from open_supir.inference.memory import Rung
from open_supir.inference.options import RestoreOptions


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What a restoration gives.

    Attributes:
        samples: One image or more, shaped as the input, or scaled; [0, 1].
        cleaned: The same size: what the robust encoder alone makes of the input; [0, 1].
        caption: The caption used, before the quality words.
        prompt: The whole positive prompt; chunks are joined by " | ".
        options: As asked for, with what was given up for want of memory.
        given_up: That, in order.
        is_exact: Whether all of it left the result as asked for. Not so where tiles were made
            smaller than asked, or where the autoencoder's attention saw tiles only.
        seconds: Wall time by stage.
    """

    samples: tuple[Tensor, ...]
    cleaned: Tensor
    caption: str
    prompt: str
    options: RestoreOptions
    given_up: tuple[Rung, ...] = ()
    is_exact: bool = True
    seconds: Mapping[str, float]

    @property
    def restored(self) -> Tensor:
        """The first sample."""
        return self.samples[0]

    @property
    def seed(self) -> int:
        """As given."""
        return self.options.seed

    @property
    def settings(self) -> SamplerSettings:
        """How it was sampled."""
        return self.options.settings


@dataclass
class Run:
    """One call: what it was given, and what outlives an attempt that ran out of memory."""

    image: Tensor  # (1, 3, H, W)
    caption: str | None
    source: Path | None
    on_step: OnStep | None
    seconds: dict[str, float]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to the stage's."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
