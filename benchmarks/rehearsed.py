"""Run a GPU script of this folder where there is no GPU, on CUDA tensors without values.

    python benchmarks/rehearsed.py [memory=80] bench_train_step.py full scale=tiny batches=4

Mistakes then show before a GPU is borrowed. Peaks are simulated (docs/training.md, dry runs); times
are those of this CPU and mean nothing. Memory runs out as on a card of `memory` GB, waits for the
device warn or raise as `torch.cuda.set_sync_debug_mode` says, and nothing is compiled. 8-bit AdamW
cannot be run: its library has kernels of its own.
"""

import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from open_supir.rehearsal.device import replaced
from open_supir.rehearsal.meter import Meter

HERE = Path(__file__).parent
GB = 10**9


class PretendedCard(Meter):
    """A meter that runs out of memory, and that answers as torch.cuda does.

    Args:
        memory: Of the card, in GB.
    """

    def __init__(self, memory: float) -> None:
        super().__init__("all")
        self.memory = int(memory * GB)
        self.sync_debug_mode = "default"

    def _note_memory(self, tensor: Tensor) -> None:
        super()._note_memory(tensor)
        if self.now > self.memory:
            raise torch.OutOfMemoryError(f"{self.now / GB:.1f} of {self.memory / GB:.1f} GB")

    def wait(self, what: str) -> None:
        """Count a wait; warn or raise as the mode says."""
        super().wait(what)
        if self.sync_debug_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")
        if self.sync_debug_mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    def peak(self, *_: Any) -> int:
        """Return the highest memory in use since `restart`, in bytes."""
        return max((phase.peak for phase in self.phases.values()), default=self.now)

    def answers(self) -> dict[str, Callable[..., Any]]:
        """Return what replaces functions of torch.cuda."""
        card = SimpleNamespace(total_memory=self.memory, name="pretended GPU", major=9, minor=0)
        nothing = lambda *_, **__: None  # noqa: E731
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda *_: card.name,
            "get_device_properties": lambda *_: card,
            "synchronize": nothing,
            "empty_cache": nothing,
            "reset_peak_memory_stats": lambda *_: self.restart(),
            "max_memory_allocated": self.peak,
            "memory_allocated": lambda *_: self.now,
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_debug_mode", mode),
        }


@contextmanager
def rehearsed(memory: float) -> Iterator[PretendedCard]:
    """Inside the block there seems to be a GPU of `memory` GB; for the whole process.

    Raises:
        NotPretended: This torch cannot pretend to have one.
    """
    card = PretendedCard(memory)
    with ExitStack() as stack:
        stack.enter_context(card.measuring(backward=True))
        is_driverless = property(lambda _: True)  # whatever torch.cuda.is_available answers
        stack.enter_context(replaced(FakeTensorMode, "avoid_device_init", is_driverless))
        for name, answer in card.answers().items():
            stack.enter_context(replaced(torch.cuda, name, answer))
        stack.enter_context(replaced(torch, "Generator", lambda *_: torch._C.Generator()))
        stack.enter_context(replaced(nn.Module, "to", _moved))
        stack.enter_context(replaced(nn.Module, "compile", lambda *_, **__: None))
        stack.enter_context(replaced(torch, "compile", lambda function, **_: function))
        yield card


def _moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Move a module as `nn.Module.to` does: parameters without values cannot be moved in place."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
    moved: dict[int, nn.Parameter] = {}  # some are shared
    for owner in module.modules():
        for name, old in list(owner.named_parameters(recurse=False)):
            value = old.detach().to(device, dtype)
            if layout is not None and value.ndim == 4:
                value = value.contiguous(memory_format=layout)
            if id(old) not in moved:
                moved[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
            setattr(owner, name, moved[id(old)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)
    return module


def main() -> None:
    """Run the script that the command line names."""
    words = sys.argv[1:]
    memory = float(words.pop(0).partition("=")[2]) if words[:1] and "memory=" in words[0] else 80
    if not words:
        sys.exit(__doc__)
    sys.argv = [str(HERE / words[0]), *words[1:]]
    sys.path.insert(0, str(HERE))
    with rehearsed(memory):
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
