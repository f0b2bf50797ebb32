"""The LoRA layers that one-step training may add to the UNet, merged when restoring."""

from pathlib import Path

import torch
from torch import nn

from open_supir.checkpoints.files import open_checkpoint

PREFIX, DOWN, UP = "network.unet.", ".lora_A.default.weight", ".lora_B.default.weight"


@torch.no_grad()
def merge_adapters(path: str | Path, unet: nn.Module) -> int:
    """Add up times down to every weight that has both in a training checkpoint; factor 1.

    Args:
        path: A training checkpoint; its averaged weights are used if present.

    Returns:
        How many weights have changed.

    Raises:
        KeyError: The checkpoint holds no such layers.
    """
    checkpoint = open_checkpoint(path, key="checkpoint")
    names = [key for key in checkpoint if key.startswith(PREFIX) and key.endswith(DOWN)]
    if not names:
        raise KeyError(f"{path}: its recipe has LoRA layers on the UNet, but the file has none")
    for key in names:
        layer = key.removesuffix(DOWN)
        change = checkpoint[layer + UP].float() @ checkpoint[key].float()
        weight = unet.get_parameter(f"{layer.removeprefix(PREFIX)}.weight")
        weight.copy_(weight.float() + change.to(weight.device))
    return len(names)
