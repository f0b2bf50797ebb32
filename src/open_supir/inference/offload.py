"""Offload: weights stay on the host, and a copy of them is on the device while their part works."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


@contextmanager
def visiting(part: nn.Module, device: torch.device) -> Iterator[None]:
    """Give a part copies of its weights and buffers on the device inside the block.

    Afterwards it has its own again, and nothing is copied back: changes made to the copies are
    lost. What is on the device already is not copied.
    """
    owned = [
        (owner, name, tensor)
        for owner in part.modules()
        for named in (owner.named_parameters, owner.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    copies = {
        id(tensor): _copied(tensor, device) for tensor in {id(t): t for *_, t in owned}.values()
    }
    try:
        for owner, name, tensor in owned:
            setattr(owner, name, copies[id(tensor)])
        yield
    finally:
        for owner, name, tensor in owned:
            setattr(owner, name, tensor)


def park(part: nn.Module, device: torch.device) -> None:
    """Move a part to the host, to visit that device; pinned for fast copies if it is CUDA."""
    part.to("cpu")
    if device.type != "cuda":
        return
    try:
        for tensor in (*part.parameters(), *part.buffers()):
            if type(tensor.data) is Tensor and not tensor.is_pinned():  # not quantised ones
                tensor.data = tensor.data.pin_memory()
    except RuntimeError as error:  # the system may limit it
        reason = str(error).partition("\n")[0]
        log.warning("offload: some weights are in ordinary memory, slower to copy: %s", reason)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    copy = tensor.detach().to(device, non_blocking=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy
