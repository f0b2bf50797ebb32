"""Devices: which one to work on, in which precision, and how much memory it has."""

import os

import torch

KINDS = ("cuda", "xpu", "mps", "cpu")  # `cuda` is ROCm too


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the machine's GPU (cuda, xpu or mps), else cpu.

    Raises:
        ValueError: There is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"device={name}: known are auto, {known}, and cuda:NUMBER")
    count = 1 if device.type == "cpu" else _count(device.type)
    if (device.index or 0) >= count:
        words = device.type.upper()
        raise ValueError(
            f"device={name}: this machine has {count} {words} devices; use device=auto"
        )
    return device


def best_dtype(device: torch.device) -> str:
    """Return the precision to restore in: bfloat16 where the device computes in it, else float16;
    float32 on a CPU. (With float16, the autoencoder stays float32; see `Restorer`.)
    """
    if device.type == "cpu":
        return "float32"
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        has_bfloat16 = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        has_bfloat16 = True
    return "bfloat16" if has_bfloat16 else "float16"


def total_memory(device: torch.device) -> int:
    """Return the device's memory in bytes: a GPU's own, or what the system shares with it."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_cache(device: torch.device) -> None:
    """Give unused memory back to the device."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64 on the CPU: not every device has that type."""
    return tensor.cpu().double()


def _count(kind: str) -> int:
    return torch.get_device_module(kind).device_count()
