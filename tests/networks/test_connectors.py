"""Connectors: what each is at its start, and what control_scale means."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.networks import Conditioning, UNet
from src.networks.connectors import (
    CrossAttentionConnector,
    PlainConnector,
    ResidualConnector,
    ZeroCrossAttention,
    ZeroSFT,
    ZeroSFTConnector,
)
from tests.conftest import WIDTHS, controlled, randomise

NUMBERS: dict[str, Any] = dict(head_channels=32, **WIDTHS)
SDXL: dict[str, Any] = dict(
    model_channels=320, channel_mult=[1, 2, 4], num_res_blocks=2, head_channels=64
)


def call(unet: UNet, connector: Any, scale: float) -> tuple[Tensor, Tensor]:
    """Return the controlled output and the UNet's own."""
    x, t = torch.randn(2, 4, 8, 12), torch.tensor([10, 900])
    cond = Conditioning(torch.randn(2, 77, 32), torch.randn(2, 40))
    network = controlled(unet, connector)
    with torch.no_grad():
        return network(x, t, cond, torch.randn(2, 4, 8, 12), scale), unet(x, t, cond)


def test_sft_connector_normalises_at_init() -> None:
    """Zero-initialised ZeroSFT equals its group norm: it is not the identity."""
    module = ZeroSFT(32, 32, 64)
    c, skip, h = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(1, 64, 4, 4)
    expected = F.group_norm(torch.cat([h, skip], dim=1), 32)
    assert torch.allclose(module(c, skip, h), expected, atol=1e-6)


@pytest.mark.parametrize("connector", [ResidualConnector, CrossAttentionConnector])
def test_zero_initialised_connectors_change_nothing_at_init(unet: UNet, connector: Any) -> None:
    controlled_out, own = call(unet, connector(**NUMBERS), scale=1.0)
    assert torch.allclose(controlled_out, own, atol=1e-6)


@pytest.mark.parametrize(
    "connector",
    [
        PlainConnector(**NUMBERS),
        ResidualConnector(**NUMBERS),
        CrossAttentionConnector(**NUMBERS),
        ZeroSFTConnector(cross_attention=True, **NUMBERS),
        ZeroSFTConnector(cross_attention=False, **NUMBERS),
    ],
    ids=["plain", "residual", "cross_attention", "zerosft_released", "zerosft"],
)
def test_control_scale_0_returns_the_prior(unet: UNet, connector: Any) -> None:
    controlled_out, own = call(unet, randomise(connector), scale=0.0)
    assert torch.allclose(controlled_out, own, atol=1e-5)


@pytest.mark.parametrize("connector", [ResidualConnector, CrossAttentionConnector])
def test_trained_connectors_change_the_output(unet: UNet, connector: Any) -> None:
    controlled_out, own = call(unet, randomise(connector(**NUMBERS)), scale=1.0)
    assert (controlled_out - own).abs().max() > 1e-3


def test_zerosft_interpolates_between_raw_and_controlled() -> None:
    module = randomise(ZeroSFT(32, 32, 64))
    c, skip, h = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(1, 64, 4, 4)
    raw, full = torch.cat([h, skip], dim=1), module(c, skip, h)
    assert torch.allclose(module(c, skip, h, scale=0.6), 0.6 * full + 0.4 * raw, atol=1e-5)


def test_released_connector_has_the_released_layout_and_size() -> None:
    with torch.device("meta"):
        connector = ZeroSFTConnector(cross_attention=True, **SDXL)
        paper = ZeroSFTConnector(cross_attention=False, **SDXL)
    kinds = [type(module) for module in connector.project_modules]
    assert [i for i, kind in enumerate(kinds) if kind is ZeroCrossAttention] == [3, 7]
    assert len(kinds) == 12 and len(paper.project_modules) == 10
    assert sum(p.numel() for p in connector.parameters()) == 54_797_440
    assert len(connector.state_dict()) == 118
