"""Restoring without float64 on the device: MPS has no such type."""

import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from open_supir.base.places import SHIPPED_MODEL
from open_supir.inference import Restorer

# Functions that compute in float64 on the CPU, whatever the device, and return float32
ON_CPU = {"sigma_table", "tile_weights", "exact", "_gather", "finish", "_statistics",
          "adain_color_fix"}  # fmt: skip


class NoFloat64(TorchDispatchMode):
    """Refuses operators that give float64, except within the functions of ON_CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(out)):
            frames = traceback.extract_stack()
            assert ON_CPU & {frame.name for frame in frames}, f"{func} in {frames[-2]}"
        return out


@pytest.mark.parametrize("color_fix", ["wavelet", "adain"])
@pytest.mark.parametrize("more", [{}, {"vae_tile": 32}], ids=["whole", "tiled"])
def test_restoring_makes_no_float64(color_fix: str, more: dict[str, int]) -> None:
    restorer = Restorer.from_checkpoint(SHIPPED_MODEL)
    image = torch.rand(3, 48, 32, generator=torch.Generator().manual_seed(0))
    with NoFloat64():
        restorer(image, caption="a wall", color_fix=color_fix, scale=1.5, **more)
