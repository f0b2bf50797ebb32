"""StepGuard: skips steps that are not finite, and records odd steps so they can be replayed."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from open_supir.base.files import write_text
from open_supir.training.verdict import Findings, Parts, Verdict, judge, parts_of, skips_on_device

log = logging.getLogger(__name__)

RECORD_LIMIT = 100  # records per run; by then somebody should have looked
SPIKE_MEMORY = 0.99  # decay of the running mean and variance that spikes are measured against
SPIKE_WARMUP = 100  # steps before the first alarm


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step whose verdict is on its way to the host."""

    number: int
    turn: int  # of which optimiser: 0, or 1 for the second of two
    batches: list[Mapping[str, Any]]  # names and seeds of its samples, by micro-batch
    verdict: Verdict


class StepGuard(pl.Callback):
    """Checks loss and gradients before every optimiser step, and logs both.

    `train/loss` is the mean over all micro-batches and ranks: the loss of the global batch.

    If a loss or gradient is not finite on any rank, no rank updates anything, and the step is
    counted and recorded. After `stop_after` such steps in a row, training ends on all ranks
    together and without a checkpoint, so that the last good ones are kept. A loss far above its
    recent mean is only logged and recorded.

    A fused optimiser leaves such a step out on the device, and the host hears of it at the next
    step, so that it need not wait; at steps that are logged, and with other optimisers, in the same
    step.

    With two optimisers, each is judged by its own losses and gradients, and only the first one's
    losses are watched for spikes.

    A record is a JSON file of one step on one rank: keys, sources and seeds of its samples, losses,
    gradient norms, and the run folder (`python -m src.train replay=FILE` replays it).

    Args:
        dirpath: Folder of the records.
        stop_after: Number of steps in a row that are not finite.
        spike: Deviations above the mean that count as a spike; None for no such check.
        every: Steps between two logs of the gradient norms by part.
    """

    def __init__(
        self, dirpath: str, *, stop_after: int = 10, spike: float | None = 6.0, every: int = 25
    ) -> None:
        if stop_after < 1 or (spike is not None and not spike > 0):
            raise ValueError(f"stop_after and spike must be positive, got {stop_after}, {spike}")
        self.folder = Path(dirpath)
        self.stop_after, self.spike, self.every = stop_after, spike, every
        self.in_a_row = self.skipped = self.spikes = self.records = 0
        self.second_in_a_row = 0
        self.mean = self.variance = 0.0
        self.seen = 0
        self._run: dict[str, Any] = {}
        self._parts: list[Parts] = []  # of each optimiser
        self._batches: list[Mapping[str, Any]] = []
        self._losses: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._unread: list[Step | None] = [None, None]
        self._is_complete = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note where the run is, and what each optimiser trains."""
        self._run = {
            "rank": trainer.global_rank,
            "world": trainer.world_size,
            "run": str(Path(trainer.default_root_dir).absolute()),
        }
        self._parts = [parts_of(pl_module, optimizer) for optimizer in trainer.optimizers]

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Keep the names and seeds of this step's samples."""
        if self._is_complete:
            self._batches.clear()
            self._is_complete = False
        self._batches.append({k: batch[k] for k in ("key", "source", "seed") if k in batch})

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss of a micro-batch."""
        self._losses[_turn(pl_module)].append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Judge the step, so that a bad one changes nothing, and read the verdict before it.

        Raises:
            FloatingPointError: Too many steps in a row were not finite.
        """
        turn = _turn(pl_module)
        found = self._read(turn)
        verdict = judge(self._parts[turn], self._losses[turn], optimizer)
        self._losses[turn].clear()
        self._unread[turn] = Step(
            number=trainer.global_step, turn=turn, batches=list(self._batches), verdict=verdict
        )
        self._is_complete = True
        done = trainer.global_step + 1 - turn  # the second comes after the count
        is_shown = done % self.every == 0
        is_last = done == trainer.max_steps
        is_logged = done % (trainer.log_every_n_steps or self.every) == 0  # type: ignore[attr-defined]
        if is_shown or is_logged or is_last or not skips_on_device(optimizer):
            found = self._read(turn)
            if found is not None and found.is_bad:
                _drop_gradients(optimizer)
        if found is not None and not turn:
            # a tensor of the CPU: Lightning would copy a number to the device, and wait
            loss = torch.tensor(found.loss)
            pl_module.log("train/loss", loss, prog_bar=True, rank_zero_only=True)
        if found is not None and is_shown:
            parts = {f"grad_norm/{part}": norm for part, norm in found.norms.items()}
            counts = {"guard/skipped_steps": self.skipped, "guard/loss_spikes": self.spikes}
            whole = {} if turn else {"grad_norm/all": found.norm}
            pl_module.log_dict({**parts, **whole, **counts}, rank_zero_only=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what is left."""
        for turn in (0, 1):
            self._read(turn)

    def state_dict(self) -> dict[str, Any]:
        """Return counts and running statistics of all steps so far, as plain numbers.

        Raises:
            FloatingPointError: Too many steps in a row were not finite; nothing is saved then.
        """
        for turn in (0, 1):
            self._read(turn)
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load counts and running statistics."""
        for name in _STATE:
            setattr(self, name, state_dict.get(name, 0))

    def _read(self, turn: int) -> Findings | None:
        """Read the verdict that is outstanding, if there is one, and count the step."""
        step, self._unread[turn] = self._unread[turn], None
        if step is None:
            return None
        found = step.verdict.read()
        if found.is_bad:
            self._count_bad(step, found)
        elif turn:
            self.second_in_a_row = 0
        else:
            self.in_a_row = 0
            self._watch(step, found)
        return found

    def _count_bad(self, step: Step, found: Findings) -> None:
        self.skipped += 1
        self.in_a_row += not step.turn
        self.second_in_a_row += step.turn
        in_a_row = self.second_in_a_row if step.turn else self.in_a_row
        self._record(step, found, "not finite")
        log.warning(
            "step %d: loss or gradient not finite; skipping the update (%d in a row)",
            step.number,
            in_a_row,
        )
        if in_a_row >= self.stop_after:
            raise FloatingPointError(
                f"loss or gradient not finite in {in_a_row} steps in a row, the last of them "
                f"step {step.number}; stopped without overwriting a checkpoint. Records "
                f"are in {self.folder}; replay one with python -m src.train replay=FILE"
            )

    def _watch(self, step: Step, found: Findings) -> None:
        deviation = math.sqrt(self.variance)
        is_spike = (
            self.spike is not None
            and self.seen >= SPIKE_WARMUP
            and found.loss > self.mean + self.spike * deviation
        )
        if is_spike:
            self.spikes += 1
            self._record(step, found, "loss spike")
            log.warning(
                "step %d: loss %.4g, but recently %.4g +- %.4g",
                step.number,
                found.loss,
                self.mean,
                deviation,
            )
        self.seen += 1
        rate = max(1 - SPIKE_MEMORY, 1 / self.seen)
        difference = found.loss - self.mean
        self.mean += rate * difference
        self.variance = (1 - rate) * (self.variance + rate * difference**2)

    def _record(self, step: Step, found: Findings, reason: str) -> None:
        if self.records >= RECORD_LIMIT:
            return
        self.records += 1
        batches = [
            {
                "keys": list(batch.get("key", [])),
                "sources": list(batch.get("source", [])),
                "seeds": [int(seed) for seed in batch.get("seed", [])],
                "loss": loss * len(found.losses),  # Lightning has divided it by their number
            }
            for batch, loss in zip(step.batches, found.losses, strict=True)
        ]
        record = {
            "step": step.number,
            **self._run,
            "reason": reason,
            "grad_norms": found.norms,
            "micro_batches": batches,
        }
        name = f"step_{step.number:07d}_rank{self._run['rank']}.json"
        write_text(self.folder / name, json.dumps(record, indent=2) + "\n")


_STATE = ("in_a_row", "second_in_a_row", "skipped", "spikes", "records", "mean", "variance", "seen")


def _turn(module: Any) -> int:
    """Return which optimiser's loss is under way: 0, or 1 for the second of two."""
    return getattr(module, "turn", 0)


def _drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # optimisers skip parameters without a gradient
