"""StepGuard: skips steps that are not finite, and records odd steps so they can be replayed."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from open_supir.base.files import write_text
from open_supir.training.agreement import Ranks

log = logging.getLogger(__name__)

RECORD_LIMIT = 100  # records per run; by then somebody should have looked
SPIKE_MEMORY = 0.99  # decay of the running mean and variance that spikes are measured against
SPIKE_WARMUP = 100  # steps before the first alarm


class StepGuard(pl.Callback):
    """Checks loss and gradients before every optimiser step, and logs both.

    `train/loss` is the mean over all micro-batches and ranks: the loss of the global batch.

    If a loss or gradient is not finite on any rank, no rank updates anything, and the step is
    counted and recorded. After `stop_after` such steps in a row, training ends on all ranks
    together and without a checkpoint, so that the last good ones are kept. A loss far above its
    recent mean is only logged and recorded.

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
        self.ranks = Ranks()
        self.in_a_row = self.skipped = self.spikes = self.records = 0
        self.second_in_a_row = 0
        self.mean = self.variance = 0.0
        self.seen = 0
        self._batches: list[Mapping[str, Any]] = []
        self._losses: tuple[list[Tensor], list[Tensor]] = ([], [])  # of each optimiser
        self._is_complete = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the group of all ranks."""
        self.ranks.join()

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
        """Check the step; drop its gradients if they are not finite.

        Raises:
            FloatingPointError: Too many steps in a row were not finite.
        """
        turn = _turn(pl_module)
        squares, is_sharded = squared_norms(pl_module, optimizer)
        losses = torch.stack(self._losses[turn]).float()
        device = [*squares.values(), losses.sum(), losses.isfinite().all()]
        *values, loss, finite = torch.stack([value.float() for value in device]).tolist()
        if is_sharded:
            values = self.ranks.sum(*values)
        norms = {part: math.sqrt(v) for part, v in zip(squares, values, strict=True)}
        total = math.sqrt(sum(values))
        bad = not (finite and math.isfinite(total))
        # Lightning has already divided each micro-batch's loss by their number.
        any_bad, loss = self.ranks.sum(float(bad), loss)
        loss /= self.ranks.count
        if any_bad:
            self._skip(trainer, optimizer, norms, turn)
        elif turn:
            self.second_in_a_row = 0
        else:
            self.in_a_row = 0
            self._watch(trainer, loss, norms)
        if not turn:
            pl_module.log("train/loss", loss, prog_bar=True, rank_zero_only=True)
        if (trainer.global_step + 1 - turn) % self.every == 0:  # the second comes after the count
            parts = {f"grad_norm/{part}": norm for part, norm in norms.items()}
            counts = {"guard/skipped_steps": self.skipped, "guard/loss_spikes": self.spikes}
            whole = {} if turn else {"grad_norm/all": total}
            pl_module.log_dict({**parts, **whole, **counts}, rank_zero_only=True)
        self._losses[turn].clear()
        self._is_complete = True

    def state_dict(self) -> dict[str, Any]:
        """Return counts and running statistics, as plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load counts and running statistics."""
        for name in _STATE:
            setattr(self, name, state_dict.get(name, 0))

    def _skip(
        self,
        trainer: pl.Trainer,
        optimizer: torch.optim.Optimizer,
        norms: Mapping[str, float],
        turn: int,
    ) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # optimisers skip parameters without a gradient
        self.skipped += 1
        self.in_a_row += not turn
        self.second_in_a_row += turn
        in_a_row = self.second_in_a_row if turn else self.in_a_row
        self._record(trainer, "not finite", norms, turn)
        log.warning(
            "step %d: loss or gradient not finite; skipping the update (%d in a row)",
            trainer.global_step,
            in_a_row,
        )
        if in_a_row >= self.stop_after:
            raise FloatingPointError(
                f"loss or gradient not finite in {in_a_row} steps in a row, the last of them "
                f"step {trainer.global_step}; stopped without overwriting a checkpoint. Records "
                f"are in {self.folder}; replay one with python -m src.train replay=FILE"
            )

    def _watch(self, trainer: pl.Trainer, loss: float, norms: Mapping[str, float]) -> None:
        deviation = math.sqrt(self.variance)
        is_spike = (
            self.spike is not None
            and self.seen >= SPIKE_WARMUP
            and loss > self.mean + self.spike * deviation
        )
        if is_spike:
            self.spikes += 1
            self._record(trainer, "loss spike", norms)
            log.warning(
                "step %d: loss %.4g, but recently %.4g +- %.4g",
                trainer.global_step,
                loss,
                self.mean,
                deviation,
            )
        self.seen += 1
        rate = max(1 - SPIKE_MEMORY, 1 / self.seen)
        difference = loss - self.mean
        self.mean += rate * difference
        self.variance = (1 - rate) * (self.variance + rate * difference**2)

    def _record(
        self, trainer: pl.Trainer, reason: str, norms: Mapping[str, float], turn: int = 0
    ) -> None:
        if self.records >= RECORD_LIMIT:
            return
        self.records += 1
        losses = self._losses[turn]
        batches = [
            {
                "keys": list(batch.get("key", [])),
                "sources": list(batch.get("source", [])),
                "seeds": [int(seed) for seed in batch.get("seed", [])],
                "loss": float(loss) * len(losses),
            }
            for batch, loss in zip(self._batches, losses, strict=True)
        ]
        record = {
            "step": trainer.global_step,
            "rank": trainer.global_rank,
            "world": trainer.world_size,
            "reason": reason,
            "run": str(Path(trainer.default_root_dir).absolute()),
            "grad_norms": {part: norm for part, norm in norms.items()},
            "micro_batches": batches,
        }
        name = f"step_{trainer.global_step:07d}_rank{trainer.global_rank}.json"
        write_text(self.folder / name, json.dumps(record, indent=2) + "\n")


_STATE = ("in_a_row", "second_in_a_row", "skipped", "spikes", "records", "mean", "variance", "seen")


def _turn(module: Any) -> int:
    """Return which optimiser's loss is under way: 0, or 1 for the second of two."""
    return getattr(module, "turn", 0)


def squared_norms(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> tuple[dict[str, Tensor], bool]:
    """Return the squared gradient norm of each trained part, and whether it covers only a shard.

    Only of what `optimizer` trains, if one is given.

    A part is named by the first two components of its parameters' names, as network.control.
    """
    by_part: dict[str, list[Tensor]] = defaultdict(list)
    is_sharded = False
    groups = [] if optimizer is None else optimizer.param_groups
    own = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        if grad is None or (optimizer is not None and id(parameter) not in own):
            continue
        if hasattr(grad, "to_local"):
            is_sharded, grad = True, grad.to_local()  # type: ignore[operator]
        by_part[".".join(name.split(".")[:2])].append(grad)
    return {
        part: torch.stack(torch._foreach_norm(grads)).float().square().sum()  # pyright: ignore[reportPrivateImportUsage]
        for part, grads in by_part.items()
    }, is_sharded
