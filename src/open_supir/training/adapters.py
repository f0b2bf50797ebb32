"""Low-rank layers (LoRA, arXiv:2106.09685) on the frozen UNet, by peft."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from open_supir.networks import UNet
from open_supir.networks.layers import SpatialTransformer


def add_adapters(unet: UNet, rank: int) -> int:
    """Add LoRA layers to every linear layer of the UNet's transformers, in place.

    They start as no change; their factor alpha / rank is 1.

    Returns:
        How many layers got one.

    Raises:
        ValueError: `rank` is not positive, or peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"one_step.unet_lora={rank}: the rank must be at least 1, or null")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("one_step.unet_lora needs peft: pip install -e '.[lora]'") from error
    targets = [
        f"{name}.{inner}"
        for name, layer in unet.named_modules()
        if isinstance(layer, SpatialTransformer)
        for inner, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), unet)
    return len(targets)


@contextmanager
def without_adapters(unet: UNet) -> Iterator[None]:
    """Run the UNet as it was before `add_adapters`; peft's own switch would also freeze them."""
    layers: list[Any] = [layer for layer in unet.modules() if hasattr(layer, "_disable_adapters")]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
