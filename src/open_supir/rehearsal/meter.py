"""The meter: counts what code on the pretended GPU does, by phase."""

import math
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from open_supir.rehearsal.device import engine_asks, pretended_gpu, replaced

BLOCK = 512  # bytes: what PyTorch's allocator rounds to
FEW = 1000  # values that the host may read after they were copied to it
META = torch.device("meta")
SOURCES = Path(__file__).parents[1]
# operations that launch nothing
VIEWS = frozenset(
    "alias as_strided detach empty empty_like empty_strided expand is_contiguous is_pinned "
    "lift_fresh new_empty permute reshape select slice split split_with_sizes squeeze sym_size "
    "sym_stride t transpose unbind unfold unsqueeze view view_as _unsafe_view".split()
)
# operations whose result's size or value the host must know
ASKING = frozenset("_local_scalar_dense _unique2 equal is_nonzero masked_select nonzero".split())
INDEXING = frozenset("index index_put index_put_ _index_put_impl_ _unsafe_index".split())


@dataclass
class Phase:
    """What was counted in one phase."""

    launches: int = 0  # operations with a kernel
    flops: int = 0  # of matrix products, convolutions and attention
    peak: int = 0  # bytes
    largest: int = 0  # values of the largest tensor
    waits: Counter[str] = field(default_factory=Counter)  # the host waits for the device, by place
    copies: Counter[str] = field(default_factory=Counter)  # by kind: pinned, blocking, to the host

    def plain(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return vars(self) | {"waits": dict(self.waits), "copies": dict(self.copies)}


class Meter(TorchDispatchMode):
    """Counts launches, operations, memory, copies and waits; see `measuring`.

    Args:
        outside: Name of the phase outside of `inside`, until something may have a graph.
    """

    def __init__(self, outside: str) -> None:
        super().__init__()
        self.outside = outside
        self.now = 0  # bytes in use
        self.phases: dict[str, Phase] = {}
        self.restarts = 0
        self._inside: str | None = None
        self._has_graph = False
        self._sizes: dict[int, int] = {}
        self._pinned: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    @contextmanager
    def measuring(self, *, backward: bool) -> Iterator[None]:
        """Pretend and count inside the block; see `pretended_gpu`."""
        event = partial(Event, self)
        with pretended_gpu(backward=backward), replaced(torch.cuda, "Event", event), self:
            yield

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Count the block as this phase."""
        before, self._inside = self._inside, phase
        try:
            yield
        finally:
            self._inside = before

    def restart(self) -> dict[str, Phase]:
        """Return the phases so far and start anew; memory in use stays."""
        phases, self.phases, self._has_graph = self.phases, {}, False
        self.restarts += 1
        return phases

    @property
    def phase(self) -> Phase:
        """The current phase; once something may have a graph, `forward` is outside of `inside`."""
        name = self._inside
        if name is None:
            if torch.is_grad_enabled():
                self._has_graph = True
            name = "forward" if self._has_graph else self.outside
        return self.phases.setdefault(name, Phase(peak=self.now))

    def pin(self, tensor: Tensor) -> Tensor:
        """Treat a tensor of the CPU as pinned."""
        self._pinned[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return META if engine_asks() and isinstance(args[0], FakeTensor) else func(*args)
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        has_gpu = any(_is_on_gpu(t) for t in tensors)
        goes_there = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not has_gpu and not goes_there:
            return self._on_host(func, args, kwargs, tensors)
        if name == "is_pinned":
            return False
        if has_gpu and (answer := self._asked(name, args, kwargs)) is not None:
            return answer
        self._note_copies(name, args, kwargs, tensors)
        kwargs.pop("pin_memory", None)
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None
        out = _laid_out(name, args, func(*args, **kwargs))
        self._count(func, name, args, kwargs, out)
        return out

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """Run an operation of the CPU's tensors, which have values; pinning is only noted."""
        name = func.overloadpacket.__name__
        if name == "is_pinned":
            return args[0].untyped_storage()._cdata in self._pinned
        is_pinned = kwargs.pop("pin_memory", False) or name == "_pin_memory"
        if any(isinstance(t, FakeTensor) for t in tensors):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            out = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
        return self.pin(out) if is_pinned else out

    def _asked(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return ones for what the host reads from the device, which is a wait; else None."""
        first, target = args[0], kwargs.get("device")
        if name in ASKING:
            self.wait(name)
            if name == "_local_scalar_dense":
                return first.dtype == torch.bool or (1.0 if first.is_floating_point() else 1)
            return True if name in ("equal", "is_nonzero") else None
        if name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
            self.wait("copy to the host")
            with unset_fake_temporarily():
                return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if name == "copy_" and not isinstance(first, FakeTensor):
            if first.untyped_storage()._cdata in self._pinned and args[2:3] == (True,):
                self.phase.copies["to the host"] += 1
            else:
                self.wait("copy to the host")
            if first.numel() > FEW:  # kept there for later, not read: it would take real memory
                return first
            with unset_fake_temporarily():
                return first.fill_(1)
        return None

    def _note_copies(
        self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> None:
        """Count copies from the host, and what indexing with its tensors costs."""
        if name in INDEXING:
            for index in tensors[1:]:
                if index.device.type == "cpu" and index.ndim:
                    self.wait("index from the host")
                elif index.dtype == torch.bool:
                    self.wait("index by a mask")
        if name not in ("_to_copy", "copy_"):
            return
        source = args[0] if name == "_to_copy" else args[1]
        if source.device.type != "cpu":
            return
        pinned = source.untyped_storage()._cdata in self._pinned
        is_async = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
        kind = "pinned" if pinned and is_async else "blocking"
        self.phase.copies[kind] += 1
        if kind == "blocking" and source.ndim:
            self.wait("blocking copy to the device")

    def wait(self, what: str) -> None:
        """Count that the host waits for the device."""
        self.phase.waits[f"{what}, {calling_line()}"] += 1

    def _count(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        results = [t for t in tree_leaves(out) if _is_on_gpu(t)]
        for tensor in results:
            self._note_memory(tensor)
        if name in VIEWS:
            return
        phase = self.phase
        phase.launches += 1
        phase.peak = max(phase.peak, self.now)
        phase.largest = max(phase.largest, max((t.numel() for t in results), default=0))
        if func.overloadpacket in flop_registry:
            phase.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)

    def _note_memory(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = math.ceil(storage.nbytes() / BLOCK) * BLOCK
            self.now += self._sizes[key]
            self.phase.peak = max(self.phase.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class Event:
    """Stands for `torch.cuda.Event`; its time is the host's.

    Waiting for one that was recorded before the last `restart` costs nothing: the device has long
    passed it.
    """

    def __init__(self, meter: Meter, enable_timing: bool = False) -> None:
        self.meter = meter
        self.time, self.restarts = 0.0, -1

    def record(self) -> None:
        """Note the time, and the step."""
        self.time, self.restarts = time.perf_counter(), self.meter.restarts

    def synchronize(self) -> None:
        """Count a wait, if the event is of this step."""
        if self.restarts == self.meter.restarts:
            self.meter.wait("event of the same step")

    def elapsed_time(self, end: "Event") -> float:
        """Return the milliseconds until `end`."""
        return 1e3 * (end.time - self.time)


def _is_on_gpu(value: Any) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def _laid_out(name: str, args: Any, out: Any) -> Any:
    """Return a convolution's results in cuDNN's memory layout: channels_last if an input is."""
    if not name.startswith("convolution"):
        return out
    is_backward = name == "convolution_backward"
    inputs = args[1:3] if is_backward else args[:2]
    if not any(_is_channels_last(t) for t in inputs):
        return out
    results = list(out) if is_backward else [out]
    for number, tensor in enumerate(results):
        if tensor is not None and tensor.ndim == 4 and not _is_channels_last(tensor):
            empty = torch.ops.aten.empty.memory_format
            results[number] = empty(
                tensor.shape,
                dtype=tensor.dtype,
                device=tensor.fake_device,
                memory_format=torch.channels_last,
            )
    return tuple(results) if is_backward else results[0]


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def calling_line() -> str:
    """Return file and line of our code that the current operation comes from."""
    for frame, line in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCES) and path.parent.name != "rehearsal":
            return f"{path.relative_to(SOURCES)}:{line}"
    return "PyTorch"
