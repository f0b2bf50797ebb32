"""Weight-only quantisation of frozen networks with torchao: saves memory, not time."""

import importlib.util

from torch import nn

from open_supir.networks import UNet

KINDS = ("int8", "fp8")
FP8_CAPABILITY = (8, 9)  # lowest compute capability with float8 kernels


def check_quantize(kind: str | None) -> None:
    """Check, before any weights are loaded, that the kind is known and its library installed.

    Raises:
        ImportError, ValueError: See `quantize_weights`.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"unknown quantize {kind!r}; known: {', '.join(KINDS)}")
    if importlib.util.find_spec("torchao") is None:
        raise ImportError(
            f"quantize={kind} needs torchao; install with: pip install -e '.[quantize]'"
        )


def quantize_weights(unet: UNet, kind: str) -> None:
    """Quantise the weights of the UNet's linear layers to 8 bits, in place.

    Weights are scaled back on use; convolutions, norms and embeddings are unchanged. At full size,
    the linear layers hold 87 % of the UNet's weights. Do not quantise the autoencoder: it visibly
    degrades results.

    Args:
        unet: A frozen UNet on its final device.
        kind: "int8", or "fp8" on GPUs that support it.

    Raises:
        ImportError: torchao is not installed.
        ValueError: `kind` is unknown, or the device does not support it.
    """
    check_quantize(kind)
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    if kind == "fp8" and not _has_fp8(unet):
        raise ValueError("quantize=fp8 needs a GPU of compute capability 8.9 or above; use int8")
    quantize_(unet, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


def linear_share(unet: nn.Module) -> float:
    """Return the share of the weights that `quantize_weights` would quantise."""
    linear = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Linear))
    return linear / sum(p.numel() for p in unet.parameters())


def _has_fp8(unet: nn.Module) -> bool:
    import torch

    device = next(unet.parameters()).device
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
