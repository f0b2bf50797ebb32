"""What the state of 8-bit AdamW takes: counted, because its library cannot run without a GPU."""

import math

from torch import nn

SMALL = 4096  # values; smaller tensors keep 32-bit state (bitsandbytes' `min_8bit_size`)
BLOCK = 256  # values with a common scale


def eight_bit_saving(module: nn.Module) -> int:
    """Return the bytes that 8-bit state takes less than AdamW's, for all trained parameters.

    Both averages of a value take a byte instead of four, and each block a float32 scale.
    """
    return sum(
        8 * size - (2 * size + 8 * math.ceil(size / BLOCK))
        for size in (p.numel() for p in module.parameters() if p.requires_grad)
        if size >= SMALL
    )
