"""Whether a step is finite: decided on the device, and told to the host without waiting for it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Parts = Mapping[str, Sequence[nn.Parameter]]  # parameters by the part that they belong to


@dataclass(frozen=True)
class Findings:
    """What the host learns of a step."""

    norms: dict[str, float]  # of the gradients of each part
    losses: list[float]  # of this rank's micro-batches
    loss: float  # of the global batch
    is_bad: bool  # a loss or gradient of any rank is not finite

    @property
    def norm(self) -> float:
        """Norm of all gradients."""
        return math.hypot(*self.norms.values())


class Verdict:
    """A step's numbers on their way to the host.

    Args:
        parts: Names of the parts.
        numbers: (P + N + 2,): squared norms, losses of N micro-batches, loss of the global batch,
            and 1 if the step is bad.
    """

    def __init__(self, parts: Iterable[str], numbers: Tensor) -> None:
        self.parts = tuple(parts)
        self._event: Any = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> Findings:
        """Return the numbers; waits until the device has computed them, and for nothing later."""
        if self._event is not None:
            self._event.synchronize()
        *values, loss, bad = self._numbers.tolist()
        squares, losses = values[: len(self.parts)], values[len(self.parts) :]
        norms = dict(zip(self.parts, map(math.sqrt, squares), strict=True))
        return Findings(norms, losses, loss, bool(bad))


def judge(parts: Parts, losses: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Verdict:
    """Judge the step that `optimizer` is about to make; it will not make a bad one.

    All ranks come to the same verdict. The host waits for nothing, and need not know it: a fused
    optimiser looks at `found_inf` on the device. One that does not must be stopped by the host, see
    `skips_on_device`.

    Args:
        parts: What the optimiser trains; see `parts_of`.
        losses: Of this rank's micro-batches, already divided by their number.
    """
    squares, is_sharded = squared_norms(parts)
    own = torch.stack(list(losses)).float()
    bad = ~torch.stack([*squares.values(), *own]).isfinite().all()
    numbers = torch.stack([*squares.values(), own.sum(), bad.float()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(numbers if is_sharded else numbers[-2:])
        numbers[-2].div_(dist.get_world_size())
    is_bad = (numbers[-1] > 0) | ~numbers[:-2].sum().isfinite()  # sums over shards may overflow
    optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
    return Verdict(squares, torch.cat([numbers[:-2], own, numbers[-2:-1], is_bad[None].float()]))


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimiser itself leaves out a step that `judge` found bad."""
    return all(
        group.get("fused") and parameter.device.type in ("cpu", "cuda")
        for group in optimizer.param_groups
        for parameter in group["params"][:1]
    )


def parts_of(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Parts:
    """Return the parameters that `optimizer` trains, or all that are trained, by part.

    A part is named by the first two components of its parameters' names, as network.control.
    """
    by_part: dict[str, list[nn.Parameter]] = defaultdict(list)
    groups = [] if optimizer is None else optimizer.param_groups
    own = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in module.named_parameters():
        if id(parameter) in own if optimizer is not None else parameter.requires_grad:
            by_part[".".join(name.split(".")[:2])].append(parameter)
    return by_part


def squared_norms(parts: Parts) -> tuple[dict[str, Tensor], bool]:
    """Return the squared gradient norm of each part, and whether it covers only a shard.

    Parts without gradients are left out.
    """
    is_sharded = False
    squares: dict[str, Tensor] = {}
    for part, parameters in parts.items():
        grads = [p.grad for p in parameters if p.grad is not None]
        if grads and hasattr(grads[0], "to_local"):
            is_sharded = True
        grads = [g.to_local() if hasattr(g, "to_local") else g for g in grads]  # type: ignore[operator]
        if grads:
            squares[part] = torch.stack(torch._foreach_norm(grads)).float().square().sum()  # pyright: ignore[reportPrivateImportUsage]
    return squares, is_sharded
