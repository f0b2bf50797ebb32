"""Optimiser and learning-rate schedule of the trained parts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW with a linear warm-up, then a constant rate or a cosine to `final_lr_ratio`.

    Attributes:
        lr: Peak learning rate. It does not depend on the number of devices: the global batch is
            fixed.
        weight_decay: Of matrices and kernels; norms and biases have none.
        betas: Of Adam.
        warmup_steps: Steps from 0 to `lr`.
        decay: What happens after the warm-up.
        decay_steps: Step at which the cosine ends; needed by cosine only.
        final_lr_ratio: Where the cosine ends, as a share of `lr`.

    Raises:
        ValueError: A value is out of its range, or cosine lacks its end.
    """

    lr: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    decay: Decay = "constant"
    decay_steps: int | None = None
    final_lr_ratio: float = 0.05

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(
                "lr must be positive, weight_decay and warmup_steps at least 0, got "
                f"lr={self.lr}, weight_decay={self.weight_decay}, warmup_steps={self.warmup_steps}"
            )
        if self.decay not in get_args(Decay):
            raise ValueError(f"unknown decay {self.decay!r}; known: {', '.join(get_args(Decay))}")
        if self.decay == "cosine" and not self.decay_steps:
            raise ValueError("decay=cosine needs decay_steps, the step at which it ends")

    def factor(self, step: int) -> float:
        """Return the share of `lr` in use at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant" or self.decay_steps is None:
            return 1.0
        span = max(1, self.decay_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: OptimSettings
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """Return AdamW over the parameters that require a gradient, and its schedule, one call a step.

    Raises:
        ValueError: Nothing is trainable.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("no parameter requires a gradient; nothing to train")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )
    # Lightning refuses to clip the gradients of an optimiser that unscales them in its step, as
    # fused ones do under fp16's loss scaling: let it be done before the step
    optimizer._step_supports_amp_scaling = False
    return optimizer, LambdaLR(optimizer, settings.factor)
