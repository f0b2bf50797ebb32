"""Weight-only quantisation of frozen networks through torchao: less memory, not more speed."""

from torch import nn

from open_supir.networks import UNet

FP8_CAPABILITY = (8, 9)  # of the first GPUs whose kernels know float8


def quantize_weights(unet: UNet, kind: str) -> None:
    """Keep the weights of the UNet's linear layers in 8 bits, in place; use scales them back.

    Convolutions, norms and embeddings stay as they are. At full size the linear layers hold 87 % of
    the UNet's weights. Do not quantise the autoencoder: its results show it.

    Args:
        unet: Frozen, and where it will work.
        kind: "int8", or "fp8" on GPUs that have it.

    Raises:
        ImportError: torchao is not installed.
        ValueError: `kind` is unknown, or the device does not support it.
    """
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise ImportError(
            "quantize needs torchao; install with: pip install -e '.[quantize]'"
        ) from error
    if kind not in ("int8", "fp8"):
        raise ValueError(f"unknown quantize {kind!r}; known: int8, fp8")
    if kind == "fp8" and not _has_fp8(unet):
        raise ValueError("quantize=fp8 needs a GPU of compute capability 8.9 or above; use int8")
    quantize_(unet, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


def linear_share(unet: nn.Module) -> float:
    """Return the share of the weights that `quantize_weights` would touch."""
    linear = sum(m.weight.numel() for m in unet.modules() if isinstance(m, nn.Linear))
    return linear / sum(p.numel() for p in unet.parameters())


def _has_fp8(unet: nn.Module) -> bool:
    import torch

    device = next(unet.parameters()).device
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
