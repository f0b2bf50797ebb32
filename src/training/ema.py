"""Exponential moving average of the trained parameters only."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


class TrainedEMA(pl.Callback):
    """Keeps an fp32 average of what is trained; validation and exported weights use it.

    The average ramps up: at update n its decay is min(decay, (1 + n) / (10 + n)).

    Args:
        decay: Of the average, per optimiser step.

    Raises:
        ValueError: `decay` is not in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the current parameters, unless a checkpoint has brought an average."""
        for name, parameter in self._trained(pl_module).items():
            average = self.average.get(name, parameter.detach())
            self.average[name] = average.float().clone().to(parameter.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Move the average after every optimiser step."""
        if trainer.global_step == self.updates:
            return  # an accumulation step: nothing has changed
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [p.detach().float() for p in self._trained(pl_module).values()]
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        if trainer.state.fn == "fit":
            self._swap(pl_module)
            self._swapped = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on training the raw parameters."""
        if self._swapped:
            self._swap(pl_module)
            self._swapped = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average beside the raw parameters, as `ema`."""
        checkpoint["ema"] = {name: average.clone() for name, average in self.average.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the stored average."""
        self.average = dict(checkpoint.get("ema", {}))
        self.updates = int(checkpoint.get("global_step", 0))

    def _swap(self, module: pl.LightningModule) -> None:
        with torch.no_grad():
            for name, parameter in self._trained(module).items():
                raw = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(raw)

    @staticmethod
    def _trained(module: pl.LightningModule) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in module.named_parameters() if p.requires_grad}
