"""Exponential moving average of the trained parameters."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from open_supir.training.trained_parts import TrainedParts


class TrainedEMA(pl.Callback):
    """Keeps an fp32 average of the trained parameters; validation and exported weights use it.

    The decay ramps up: at update n it is min(decay, (1 + n) / (10 + n)).

    Args:
        decay: Decay per optimiser step.
        every: Optimiser steps between two updates; each update uses decay ** every.
        device: "cpu" keeps the average off the device, at the cost of a copy of the weights per
            update; None keeps it where the parameters are.

    Raises:
        ValueError: `decay` is not in [0, 1), or `every` is not positive.
    """

    def __init__(self, decay: float, *, every: int = 1, device: str | None = None) -> None:
        if not 0 <= decay < 1 or every < 1:
            raise ValueError(f"need 0 <= decay < 1 and every >= 1, got {decay} and {every}")
        self.decay, self.every, self.device = decay, every, device
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._trained: dict[str, torch.nn.Parameter] = {}
        self._swapped = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the current parameters, unless a checkpoint brought an average."""
        self._trained = _averaged(pl_module)  # once: a search of SDXL's modules takes milliseconds
        for name, parameter in self._trained.items():
            own = _local(parameter)
            average = self.average.get(name)
            if average is None:
                average = own
            elif average.shape != own.shape:  # a whole average of a sharded parameter
                average = _local(_shard_like(average.to(own.device), parameter))
            self.average[name] = average.float().clone().to(self.device or own.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Update the average every `every` optimiser steps."""
        if trainer.global_step == self.updates or trainer.global_step % self.every:
            return  # within an accumulation, or not due
        self.updates = trainer.global_step
        updates = self.updates // self.every
        decay = min(self.decay**self.every, (1 + updates) / (10 + updates))
        averages = list(self.average.values())
        current = [
            _local(p).to(average.device).float()
            for p, average in zip(self._trained.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the average in for validation."""
        if trainer.state.fn == "fit" and self.average:
            self._swap()
            self._swapped = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the raw parameters back in for training."""
        if self._swapped:
            self._swap()
            self._swapped = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average as `ema`, next to the raw parameters; unsharded if they are sharded."""
        checkpoint["ema"] = {
            name: _whole(self.average[name], parameter).cpu()
            for name, parameter in self._trained.items()
            if name in self.average
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load the stored average."""
        self.average = dict(checkpoint.get("ema", {}))
        self.updates = int(checkpoint.get("global_step", 0))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            own, average = _local(parameter), self.average[name]
            raw = own.clone()
            own.copy_(average)
            average.copy_(raw)


def _averaged(module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
    parameters = module.named_parameters()
    if isinstance(module, TrainedParts):
        exported = set(module.exported_names())
        return {name: p for name, p in parameters if name in exported}
    return {name: p for name, p in parameters if p.requires_grad}


def _local(parameter: Tensor) -> Tensor:
    """Return the values on this rank: the shard of a sharded parameter, else the whole one."""
    parameter = parameter.detach()
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[operator]


def _whole(shard: Tensor, parameter: Tensor) -> Tensor:
    """Return the whole average of a parameter, of which `shard` is this rank's part."""
    if not hasattr(parameter, "to_local"):
        return shard.clone()
    from torch.distributed.tensor import DTensor

    shard = shard.to(_local(parameter).device)
    return DTensor.from_local(
        shard,
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        shape=parameter.shape,
        stride=parameter.stride(),
    ).full_tensor()


def _shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return `whole`, sharded like `parameter`."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
