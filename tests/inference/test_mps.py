"""Restoring with what Apple's GPUs have: no float64 on the device, no operator that MPS lacks.

PyTorch's own table of operators and their kernels, `native_functions.yaml`, is part of its wheel.
"""

import dataclasses
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from open_supir.base.places import SHIPPED_MODEL
from open_supir.inference import Restorer

# Functions that compute in float64 on the CPU, whatever the device, and return float32
ON_CPU = {"sigma_table", "tile_weights", "exact", "_gather", "finish", "_statistics",
          "adain_color_fix"}  # fmt: skip
# Attention is dispatched by device before it gets here; MPS has a kernel of its own for it
OF_THE_CPU = {"aten::_scaled_dot_product_flash_attention_for_cpu"}
MPS_ATTENTION = "aten::_scaled_dot_product_attention_math_for_mps"


class Recorder(TorchDispatchMode):
    """Records operators; refuses those that give float64, except within ON_CPU's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(func.name())
        if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(out)):
            frames = traceback.extract_stack()
            assert ON_CPU & {frame.name for frame in frames}, f"{func} in {frames[-2]}"
        return out


@functools.cache
def runs_on_mps() -> Callable[[str], bool]:
    """Return a function that tells whether MPS has a kernel for an operator's name."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    table = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    functions = {f"{f.namespace}::{f.func.name}": f for f in table.native_functions}
    kernels = table.backend_indices[DispatchKey.MPS]

    def known(name: str) -> bool:
        function = functions[name]
        if function.has_composite_kernel:
            return True
        delegate = function.structured_delegate
        return kernels.has_kernel(function) or (
            delegate is not None and kernels.has_kernel(functions[f"aten::{delegate}"])
        )

    return known


@pytest.mark.parametrize(
    "name, known",
    [("aten::add.Tensor", True), (MPS_ATTENTION, True), ("aten::ormqr", False),
     ("aten::linalg_eig", False)],
)  # fmt: skip
def test_the_table_knows_what_mps_has(name: str, known: bool) -> None:
    assert runs_on_mps()(name) is known


@pytest.mark.parametrize(
    "sampler, more",
    [
        ({}, {"color_fix": "wavelet", "vae_tile": 32}),
        ({}, {"color_fix": "adain", "num_samples": 2}),
        ({"tile": 64, "s_churn": 5.0, "tau": 1.0}, {"color_fix": "none"}),
        ({"cfg_scale": 4.0}, {"mask": torch.linspace(0, 1, 48 * 32).view(1, 1, 48, 32)}),
    ],
    ids=["vae_tiles", "samples", "tiles", "mask"],
)
def test_restoring_uses_what_mps_has(sampler: dict[str, Any], more: dict[str, Any]) -> None:
    restorer = Restorer.from_checkpoint(SHIPPED_MODEL)
    settings = dataclasses.replace(restorer.options.sampler, num_steps=2, **sampler)
    image = torch.rand(3, 48, 32, generator=torch.Generator().manual_seed(0))
    with Recorder() as recorder:
        restorer(image, caption="a wall", scale=1.5, sampler=settings, **more)
    assert "aten::convolution" in recorder.names
    assert {name for name in recorder.names - OF_THE_CPU if not runs_on_mps()(name)} == set()
