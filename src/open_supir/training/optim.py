"""Optimiser and learning-rate schedule of the trained parts."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from open_supir.training.muon import Muon

Decay = Literal["constant", "cosine"]
Kind = Literal["adamw", "adamw_8bit", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimiser: a linear warm-up, then a constant rate or a cosine to `final_lr_ratio`.

    Raises:
        ValueError: A value is out of range, or `decay_steps` is missing for cosine.
    """

    # Peak learning rate. It does not depend on the number of devices, because the global batch is
    # fixed.
    lr: float
    weight_decay: float = 0.01  # weight decay of matrices and kernels; norms and biases have none
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's betas
    warmup_steps: int = 0  # steps from 0 to `lr`
    decay: Decay = "constant"  # the schedule after the warm-up
    decay_steps: int | None = None  # step at which the cosine ends; only cosine needs it
    final_lr_ratio: float = 0.05  # final value of the cosine, as a share of `lr`
    # "adamw" is fused; the state of "adamw_8bit" (bitsandbytes) takes a quarter of the memory;
    # "muon" is for small networks that are trained from scratch (see Muon)
    kind: Kind = "adamw"
    # Parts that join later: prefix of their parameters' names -> step at which their warm-up
    # starts. Until then they do not change.
    start_steps: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(
                "lr must be positive, weight_decay and warmup_steps at least 0, got "
                f"lr={self.lr}, weight_decay={self.weight_decay}, warmup_steps={self.warmup_steps}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"each of betas must be in [0, 1), got {tuple(self.betas)}")
        if self.decay not in get_args(Decay):
            raise ValueError(f"unknown decay {self.decay!r}; known: {', '.join(get_args(Decay))}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown kind {self.kind!r}; known: {', '.join(get_args(Kind))}")
        if any(step < 0 for step in self.start_steps.values()):
            raise ValueError(f"start_steps must be at least 0, got {dict(self.start_steps)}")
        if self.decay == "cosine" and not self.decay_steps:
            raise ValueError("decay=cosine needs decay_steps, the step at which it ends")

    def factor(self, step: int, start: int = 0) -> float:
        """Return the share of `lr` used at `step`: the warm-up from `start` on, times the decay.

        The decay is the same for all parameters, whenever they join.
        """
        if step < start:
            return 0.0
        warmup = min(1.0, (step - start + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "constant" or self.decay_steps is None:
            return warmup
        span = max(1, self.decay_steps - self.warmup_steps)
        progress = min(1.0, max(0, step - self.warmup_steps) / span)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warmup * (self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine)

    def start_of(self, name: str) -> int:
        """Return the step at which the named parameter joins."""
        return max((s for part, s in self.start_steps.items() if name.startswith(part)), default=0)

    def is_kernel(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell what weight decay, and Muon's orthogonal updates, apply to."""
        return parameter.ndim > 1 and not (self.kind == "muon" and "embedding" in name)


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return the optimiser of the named parameters that require a gradient, and its schedule.

    Raises:
        ValueError: Nothing is trainable, `start_steps` matches no trained parameter, or Muon is to
            train sharded parameters.
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("no parameter requires a gradient: nothing to train")
    if settings.kind == "muon" and any(hasattr(p, "to_local") for _, p in trained):
        raise ValueError("optim.kind=muon needs whole parameters: trainer=sharded needs adamw")
    for part in settings.start_steps:
        if not any(name.startswith(part) for name, _ in trained):
            raise ValueError(f"start_steps: no trained parameter's name starts with {part!r}")
    groups: list[dict[str, Any]] = []
    for start in sorted({settings.start_of(name) for name, _ in trained}):
        joined = [(name, p) for name, p in trained if settings.start_of(name) == start]
        for kernels, decay in ((True, settings.weight_decay), (False, 0.0)):
            members = [p for name, p in joined if settings.is_kernel(name, p) == kernels]
            if members:
                groups.append({"params": members, "weight_decay": decay, "start": start})
                if settings.kind == "muon":
                    groups[-1]["orthogonal"] = kernels
    options: dict[str, Any] = {"lr": settings.lr, "betas": tuple(settings.betas)}
    if settings.kind == "adamw_8bit":
        optimizer: torch.optim.Optimizer = _adamw_8bit()(groups, **options)
    elif settings.kind == "muon":
        optimizer = Muon(groups, **options)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **options)
        # Lightning refuses to clip the gradients of an optimiser that unscales them in its step, as
        # fused ones do under fp16 loss scaling. This makes it unscale them before the step.
        optimizer._step_supports_amp_scaling = False
    factors = [partial(settings.factor, start=group["start"]) for group in groups]
    return optimizer, LambdaLR(optimizer, factors)


def set_rates(schedule: LambdaLR) -> None:
    """Set each group's rate from its `initial_lr` and the schedule's step."""
    groups = schedule.optimizer.param_groups
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    for group, factor in zip(groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "optim.kind=adamw_8bit needs bitsandbytes: pip install -e '.[eight_bit]'"
        ) from error
    return AdamW8bit
