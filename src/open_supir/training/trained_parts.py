"""TrainedParts: a LightningModule whose checkpoints hold only its trained parameters."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from open_supir.base.images import to_signed
from open_supir.training.optim import OptimSettings, build_optimizer, set_rates
from open_supir.training.sharding import ShardedStrategy, shard_trained

CHECKPOINT_FORMAT = "open-supir"


class TrainedParts(pl.LightningModule):
    """Base of all training modules.

    Parameters that require a gradient when training starts are trained. All others are frozen and
    come from the base weights, which the checkpoint names but does not contain.

    Args:
        recipe: Plain values that rebuild the networks (`architecture`) and name their base weights
            (`weights`); stored in every checkpoint.
    """

    def __init__(self, *, optim: OptimSettings, recipe: dict[str, Any]) -> None:
        super().__init__()
        self.strict_loading = False  # frozen keys are absent by design; load_state_dict checks
        self.optim = optim
        self.recipe = recipe
        self.is_sharded = False

    def trained_names(self) -> list[str]:
        """Return the names of the trained parameters, in order."""
        return [name for name, p in self.named_parameters() if p.requires_grad]

    def exported_names(self) -> list[str]:
        """Return the names of the trained parameters that are averaged and exported: all."""
        return self.trained_names()

    def stored_names(self) -> list[str]:
        """Return the names of all that a checkpoint holds: the trained parameters."""
        return self.trained_names()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the trained parameters."""
        trained = set(self.stored_names())
        full = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in full.items() if name in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load trained parameters.

        Raises:
            KeyError: The names are not exactly the trained ones; the message gives the first
                missing and the first unexpected one.
        """
        trained = self.stored_names()
        missing = [name for name in trained if name not in state_dict]
        unexpected = [name for name in state_dict if name not in set(trained)]
        if missing or unexpected:
            raise KeyError(
                f"the checkpoint does not fit this module: {len(missing)} keys missing"
                f"{_first(missing)}, {len(unexpected)} unexpected{_first(unexpected)}. "
                "Was it made with the same experiment, scale, control and connector?"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe, so that the checkpoint can be used without the run's configuration."""
        checkpoint["format"] = CHECKPOINT_FORMAT
        checkpoint["recipe"] = self.recipe

    def configure_model(self) -> None:
        """Shard what is trained under `ShardedStrategy`; do nothing under other strategies."""
        if isinstance(self.trainer.strategy, ShardedStrategy) and not self.is_sharded:
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard_trained(self, mesh, compute_dtype=dtype)
            self.is_sharded = True

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trained parameters and its schedule, which advances every step."""
        optimizer, schedule = build_optimizer(self.named_parameters(), self.optim)
        self.remember_settings([optimizer])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def remember_settings(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Remember the settings of optimisers, before a checkpoint replaces them."""
        self._settings = [
            [{name: value for name, value in group.items() if name != "params"} for group in groups]
            for groups in (optimizer.param_groups for optimizer in optimizers)
        ]

    def on_train_start(self) -> None:
        """Give a resumed optimiser this run's settings: a checkpoint brings those it was made with.

        Warm-up and decay are as if the run had had them from its first step on.
        """
        for optimizer, settings in zip(self.trainer.optimizers, self._settings, strict=True):
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)
        for config in self.trainer.lr_scheduler_configs:
            set_rates(config.scheduler)  # type: ignore[arg-type]

    def pictures(self, batch: Any) -> dict[str, Tensor]:
        """Return columns of a validation picture: title -> images (B, 3, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define pictures")


def lq_of(batch: Any, hq: Tensor, degradation: Any) -> Tensor:
    """Return the LQ images of a batch: those of real pairs as they are, else `hq` degraded.

    Both are (B, 3, H, W) in [-1, 1]. Held-out batches hold pairs alone (`data.heldout_lq`) or none;
    in training (`data.pairs`) all are degraded, so that shapes stay, and pairs keep their own.

    Raises:
        ValueError: The degradation makes images of another size than HQ's.
    """
    if "lq" in batch and "paired" not in batch:
        return to_signed(batch["lq"])
    lq = degradation(hq, batch["seed"])
    if "lq" not in batch:
        return lq
    if lq.shape != hq.shape:
        raise ValueError(
            f"data.pairs needs LQ images of HQ's size, {tuple(hq.shape[-2:])}, and the degradation "
            f"makes {tuple(lq.shape[-2:])}; set degradation.config.resize_back, e.g. bicubic"
        )
    return torch.where(batch["paired"][:, None, None, None], to_signed(batch["lq"]), lq)


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
