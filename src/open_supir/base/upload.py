"""Move many small tensors to a device in one copy."""

import math

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; valid for every dtype
Slot = tuple[int, torch.dtype, torch.Size]


def upload(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move tensors from the CPU in one copy from pinned memory, without waiting for it.

    Copied one by one, a batch's few dozen tensors would each cost a launch and, from ordinary
    memory, a wait. If `device` is the CPU, they are returned unchanged.
    """
    if device.type == "cpu":
        return tensors
    buffer, places = pack(tensors, pinned=device.type == "cuda")
    return unpack(buffer.to(device, non_blocking=True), places)


def pack(tensors: dict[str, Tensor], *, pinned: bool) -> tuple[Tensor, dict[str, Slot]]:
    """Pack tensors into one uint8 buffer; return it, and each tensor's offset, dtype and shape."""
    places, end = {}, 0
    for name, tensor in tensors.items():
        places[name] = (end, tensor.dtype, tensor.shape)
        size = tensor.numel() * tensor.element_size()
        end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for name, view in unpack(buffer, places).items():
        view.copy_(tensors[name])
    return buffer, places


def unpack(buffer: Tensor, places: dict[str, Slot]) -> dict[str, Tensor]:
    """Return views of a packed buffer."""
    views = {}
    for name, (start, dtype, shape) in places.items():
        part = buffer.narrow(0, start, shape.numel() * dtype.itemsize)
        views[name] = part.view(dtype).view(shape)
    return views
