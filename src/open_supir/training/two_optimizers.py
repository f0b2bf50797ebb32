"""TwoOptimizers: a generator's and a discriminator's optimiser, stepped by the module itself.

Lightning calls that manual optimisation. It neither clips nor accumulates then, and counts the
steps of both optimisers; here, a step is one of the generator, as everywhere else.
"""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from open_supir.training.optim import OptimSettings, build_optimizer
from open_supir.training.sharding import ShardedStrategy
from open_supir.training.trained_parts import TrainedParts

PREFIX = "discriminator."  # of the names of all that is not the generator's


class TwoOptimizers(TrainedParts):
    """A training module whose part `discriminator` has an optimiser of its own.

    Parameters of the discriminator always require a gradient, which keeps the names in checkpoints
    the same; the module keeps them out of the generator's graph. Exports and averages leave them
    out.
    """

    discriminator: nn.Module
    discriminator_optim: OptimSettings

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False
        self.turn = 0  # whose loss is under way: 0 the generator, 1 the discriminator
        self.accumulation = 1
        self.clip_norm: float | None = None

    def take_over(self, trainer: pl.Trainer) -> None:
        """Take clipping and accumulation from the trainer, which refuses both for such modules.

        Raises:
            ValueError: The trainer's precision or strategy does not work with two optimisers.
        """
        if trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed: one loss scale cannot serve two optimisers; use "
                "bf16-mixed"
            )
        if isinstance(trainer.strategy, ShardedStrategy):
            raise ValueError("trainer=sharded does not support two optimisers; use trainer=gpu")
        if isinstance(trainer.strategy, DDPStrategy):
            # Each backward pass reaches the parameters of one optimiser only. static_graph would
            # silently leave out the other's all-reduce.
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
        self.clip_norm, trainer.gradient_clip_val = trainer.gradient_clip_val, None  # type: ignore[assignment]
        self.accumulation, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1

    def setup(self, stage: str) -> None:
        """Tell the trainer, after its checks, how many batches make a step: others ask it."""
        self.trainer.accumulate_grad_batches = self.accumulation

    def teardown(self, stage: str) -> None:
        """Undo `setup`: the trainer checks again before it fits."""
        self.trainer.accumulate_grad_batches = 1

    def update(self, loss: Tensor, *, discriminator: bool = False) -> None:
        """Add the gradients of a micro-batch's loss, and step if it is the last of its step.

        Gradients are reduced over the ranks at every micro-batch: a reduction of one optimiser
        would otherwise take in the unfinished sums of the other.
        """
        self.turn = int(discriminator)
        # the training step runs under autocast, which is meant for forward passes only
        with torch.autocast(loss.device.type, enabled=False):
            self.manual_backward(loss / self.accumulation)
            if not self.trainer.fit_loop.epoch_loop._should_accumulate():
                self._step(discriminator)

    def _step(self, discriminator: bool) -> None:
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        optimizer: LightningOptimizer = optimizers[self.turn]  # type: ignore[index]
        if discriminator:  # not counted as a step of the run
            optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        optimizer.step()
        optimizer.zero_grad()
        schedules[self.turn].step()  # type: ignore[index]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients of the optimiser that steps, after the guard has seen them."""
        if self.clip_norm:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def configure_optimizers(self) -> Any:
        """Return both optimisers, the generator's first, and their schedules."""
        named: tuple[list, list] = ([], [])
        for name, parameter in self.named_parameters():
            named[name.startswith(PREFIX)].append((name, parameter))
        pairs = [
            build_optimizer(named[0], self.optim),
            build_optimizer(named[1], self.discriminator_optim),
        ]
        self.remember_settings([optimizer for optimizer, _ in pairs])
        schedules = [{"scheduler": schedule, "interval": "step"} for _, schedule in pairs]
        return [optimizer for optimizer, _ in pairs], schedules

    def exported_names(self) -> list[str]:
        """Return the names of the generator's trained parameters."""
        return [name for name in self.trained_names() if not name.startswith(PREFIX)]

    def stored_names(self) -> list[str]:
        """Return the trained parameters' names, and those of the heads' spectral norms."""
        return [*self.trained_names(), *self._buffer_names()]

    def _buffer_names(self) -> Iterator[str]:
        kept = self.discriminator.state_dict().keys()
        for name, _ in self.discriminator.named_buffers():
            if name in kept and ".parametrizations." in name:
                yield PREFIX + name
