"""Fingerprints of weights: the same for the same values, in whatever file they are."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

VALUES = 64  # of each tensor


def sampled(tensor: Tensor) -> Tensor:
    """Return at most VALUES values of a tensor, spread evenly, as bfloat16 on the CPU."""
    step = max(1, tensor.numel() // VALUES)
    return tensor.detach().flatten()[::step][:VALUES].to("cpu", torch.bfloat16)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of 16 hexadecimal digits of named tensors, or of what `sampled` gave of them.

    Values count as bfloat16, so it is the same for float32 and bfloat16. A float16 copy of float32
    weights has another one: it is rounded twice.
    """
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        state.update(name.encode() + sampled(tensor).view(torch.int16).numpy().tobytes())
    return state.hexdigest()
