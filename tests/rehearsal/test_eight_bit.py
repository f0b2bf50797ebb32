"""8-bit AdamW's state, against the library's own where it is installed."""

import pytest
import torch
from torch import nn

from open_supir.rehearsal.eight_bit import eight_bit_saving
from open_supir.training.optim import OptimSettings, build_optimizer


def test_saving_is_that_of_values_less_scales_and_small_tensors_have_none() -> None:
    """By hand: 10,000 values in 40 blocks; 4,095 values stay as they are."""
    module = nn.ParameterList([torch.zeros(100, 100), torch.zeros(4095)])
    module.append(nn.Parameter(torch.zeros(10_000), requires_grad=False))
    assert eight_bit_saving(module) == 6 * 10_000 - 8 * 40


def test_state_that_is_left_is_what_the_library_makes() -> None:
    pytest.importorskip("bitsandbytes")
    module = nn.ParameterList([torch.zeros(77, 130), torch.zeros(4096), torch.zeros(4095)])
    settings = OptimSettings(lr=1.0, kind="adamw_8bit")
    optimizer, _ = build_optimizer(module.named_parameters(), settings)
    for group, members in enumerate(g["params"] for g in optimizer.param_groups):
        for index, parameter in enumerate(members):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.init_state(optimizer.param_groups[group], parameter, group, index)  # type: ignore[attr-defined]
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and not name.startswith("qmap")  # tables that all share
    )
    values = sum(p.numel() for p in module.parameters())
    assert kept == 8 * values - eight_bit_saving(module)
