"""Rehearsal of training: two steps of a module at full size on the pretended GPU.

The first step allocates the optimiser's state; later ones find it there.
"""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from open_supir.networks import Conditioner
from open_supir.networks.conditioner import tokenize
from open_supir.networks.switches import Checkpointing, checkpoint_activations
from open_supir.rehearsal.device import replaced
from open_supir.rehearsal.meter import Meter, Phase
from open_supir.training.optim import OptimSettings, build_optimizer
from open_supir.training.trained_parts import TrainedParts
from open_supir.training.two_optimizers import PREFIX, TwoOptimizers
from open_supir.training.verdict import Verdict, judge, parts_of

CAPTION = "a photograph of a street, with several people who walk past shops on a rainy evening"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a step of one device looks like."""

    crop: int  # side in pixels
    micro_batch: int  # crops at once
    keeps_gradients: bool = False  # between micro-batches: accumulation, or DDP's buckets
    autocast: torch.dtype | None = torch.bfloat16  # None computes in float32
    frozen: torch.dtype = torch.bfloat16  # of frozen parameters
    channels_last: bool = True
    checkpointing: Checkpointing = "none"
    clip: float | None = 1.0  # norm of the gradients


@dataclass
class TrainingCost:
    """What the rehearsed steps took; memory in bytes."""

    static: int  # parameters and buffers
    resident: int = 0  # between steps: also the optimiser's state, and gradients that are kept
    first: dict[str, Phase] = field(default_factory=dict)
    later: dict[str, Phase] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Operations of a later step."""
        return sum(phase.flops for phase in self.later.values())

    def peak(self, step: dict[str, Phase]) -> int:
        """Return a step's peak."""
        return max((phase.peak for phase in step.values()), default=0)


def rehearse_training(module: TrainedParts, plan: TrainingPlan) -> TrainingCost:
    """Run a first and a later step.

    Args:
        module: Built on meta; its parameters are replaced by pretended ones.

    Raises:
        NotPretended: This torch cannot pretend to have a GPU.
    """
    checkpoint_activations(module, plan.checkpointing)
    meter = Meter("encodes")
    with meter.measuring(backward=True), ExitStack() as stack:
        give_memory(module, frozen=plan.frozen, channels_last=plan.channels_last)
        cost = TrainingCost(static=meter.now)
        method = sys.modules[type(module).__module__]
        for name in ("to_signed", "lq_of"):  # as its step calls them
            if hasattr(method, name):
                stack.enter_context(_counted(method, name, meter, "degrade"))
        stack.enter_context(_counted(Conditioner, "forward", meter, "text"))
        for name in ("log", "log_dict"):  # they need a trainer
            stack.enter_context(replaced(module, name, lambda *_, **__: None))
        update = Updates(module, plan, meter)
        meter.restart()
        _step(module, update, plan, meter)
        cost.first, cost.resident = meter.restart(), meter.now
        _step(module, update, plan, meter)
        cost.later = meter.restart()
    return cost


def give_memory(
    module: nn.Module, *, frozen: torch.dtype, trained: torch.dtype = torch.float32,
    channels_last: bool, device: str = "cuda",
) -> None:  # fmt: skip
    """Replace parameters and buffers on meta by ones on the pretended GPU, or on its host."""
    layouts = {4: torch.channels_last} if channels_last else {}
    for owner in module.modules():
        for name, old in list(owner.named_parameters(recurse=False)):
            new = torch.empty(
                old.shape,
                dtype=trained if old.requires_grad else frozen,
                device=device,
                memory_format=layouts.get(old.ndim, torch.contiguous_format),
            )
            setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def make_batch(crop: int, size: int, meter: Meter) -> dict[str, Any]:
    """Return a batch as the loader would deliver it, and copy its tensors to the device."""
    sizes = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).repeat(size, 1)
    host = {
        "hq": torch.zeros(size, 3, crop, crop, dtype=torch.uint8),
        "sizes": sizes,
        "tokens": tokenize([CAPTION]).repeat(size, 1),  # a worker's work
        "is_negative": torch.zeros(size, dtype=torch.bool),
    }
    sent = {name: meter.pin(t).to("cuda", non_blocking=True) for name, t in host.items()}
    texts = {"caption": [CAPTION] * size, "source": ["positive"] * size}
    seeds = meter.pin(torch.arange(size))  # they stay on the CPU
    return {**sent, **texts, "key": [str(i) for i in range(size)], "seed": seeds}


class Updates:
    """Makes the update of a loss as the trainer does, with the guard's check.

    Args:
        plan, meter: Of the rehearsal.
    """

    def __init__(self, module: TrainedParts, plan: TrainingPlan, meter: Meter) -> None:
        self.plan, self.meter = plan, meter
        self.optimizers = _optimizers(module)
        self.parts = [parts_of(module, optimizer) for optimizer in self.optimizers]
        self.verdicts: dict[bool, Verdict] = {}

    def __call__(self, loss: Tensor, *, discriminator: bool = False) -> None:
        """Take the gradients and step; the verdict on the step before is read."""
        optimizer, parts = self.optimizers[discriminator], self.parts[discriminator]
        meter, plan = self.meter, self.plan
        with torch.autocast("cuda", enabled=False):
            with meter.inside("backward"):
                loss.backward()
            with meter.inside("guard"):
                if discriminator in self.verdicts:
                    self.verdicts[discriminator].read()
                self.verdicts[discriminator] = judge(parts, [loss.detach()], optimizer)
            with meter.inside("optimiser"):
                if plan.clip:
                    clip_grad_norm_([p for some in parts.values() for p in some], plan.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=not plan.keeps_gradients)


def _optimizers(module: TrainedParts) -> list[torch.optim.Optimizer]:
    """Return a module's one or two optimisers, AdamW in place of 8-bit AdamW."""

    def built(optim: OptimSettings, named: Iterable[tuple[str, nn.Parameter]]) -> Any:
        # 8-bit state is a library's own; here it has float32
        optim = replace(optim, kind="adamw") if optim.kind == "adamw_8bit" else optim
        return build_optimizer(named, optim)[0]

    if not isinstance(module, TwoOptimizers):
        return [built(module.optim, module.named_parameters())]
    named: tuple[list, list] = ([], [])
    for name, parameter in module.named_parameters():
        named[name.startswith(PREFIX)].append((name, parameter))
    return [built(module.optim, named[0]), built(module.discriminator_optim, named[1])]


def _step(module: TrainedParts, update: Updates, plan: TrainingPlan, meter: Meter) -> None:
    with meter.inside("copy"):
        batch = make_batch(plan.crop, plan.micro_batch, meter)
    is_mixed = plan.autocast is not None
    steps_itself = isinstance(module, TwoOptimizers)
    with ExitStack() as stack:
        if steps_itself:
            stack.enter_context(replaced(module, "update", update))
        stack.enter_context(
            torch.autocast("cuda", dtype=plan.autocast or torch.bfloat16, enabled=is_mixed)
        )
        result: Any = module.training_step(batch, 0)
    if not steps_itself:
        update(result if isinstance(result, Tensor) else result["loss"])


def _counted(owner: Any, name: str, meter: Meter, phase: str) -> AbstractContextManager[None]:
    """Count a function of a module, or a method of a class, as one phase."""
    before = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        with meter.inside(phase):
            return before(*args, **kwargs)

    return replaced(owner, name, counted)
