"""The LoRA layers that one-step training may add to the UNet, merged to restore or convert."""

from pathlib import Path

import torch
from torch import nn

from open_supir.checkpoints.files import Checkpoint, open_checkpoint
from open_supir.checkpoints.loras import Change

PREFIX, DOWN, UP = "network.unet.", ".lora_A.default.weight", ".lora_B.default.weight"


def adapter_changes(checkpoint: Checkpoint) -> dict[str, Change]:
    """Return what a training checkpoint adds to the UNet's weights, by their names; factor 1.

    Raises:
        KeyError: It holds no such layers.
    """
    layers = [key.removesuffix(DOWN) for key in checkpoint if key.endswith(DOWN)]
    if not layers:
        raise KeyError(
            f"{checkpoint.path}: its recipe has LoRA layers on the UNet, but the file has none"
        )
    return {
        f"{layer.removeprefix(PREFIX)}.weight": Change(
            checkpoint, {"down": layer + DOWN, "up": layer + UP}, 1.0
        )
        for layer in layers
    }


@torch.no_grad()
def merge_adapters(path: str | Path, unet: nn.Module) -> int:
    """Add up times down to every weight that has both in a training checkpoint.

    Args:
        path: A training checkpoint; its averaged weights are used if present.

    Returns:
        How many weights have changed.

    Raises:
        KeyError: The checkpoint holds no such layers.
    """
    changes = adapter_changes(open_checkpoint(path, key="checkpoint"))
    for name, change in changes.items():
        weight = unet.get_parameter(name)
        weight.copy_(change(weight.float().cpu()))
    return len(changes)
