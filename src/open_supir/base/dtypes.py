"""The floating point types that settings name, and values that overflow them."""

import math

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_dtype(name: str) -> torch.dtype:
    """Return the floating point type of that name.

    Raises:
        ValueError: There is none; lists the known ones.
    """
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite; makes no copy, except of 8-bit types."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    low, high = torch.aminmax(wide.detach())  # both are NaN if any value is
    return math.isfinite(low) and math.isfinite(high)
