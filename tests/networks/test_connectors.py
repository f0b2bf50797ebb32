"""Connectors: what each is at its start, and what control_scale means."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.networks import Conditioning, UNet
from open_supir.networks.connectors import (
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


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["residual", "cross_attention", "zerosft_released"])
def test_every_join_adds_the_control_of_its_place(kind: str, scale: float) -> None:
    """Decoder block i joins the feature made at its skip, by the module whose number
    counts from the decoder's end; the middle has the last of both.
    """
    options: dict[str, Any] = {"zerosft_released": {"cross_attention": True}}
    classes: dict[str, Any] = {
        "residual": ResidualConnector,
        "cross_attention": CrossAttentionConnector,
        "zerosft_released": ZeroSFTConnector,
    }
    connector = randomise(classes[kind](**NUMBERS, **options.get(kind, {})))
    layout, modules = connector.layout, list(connector.project_modules)
    attending = [m for m in modules if kind != "cross_attention" and hasattr(m, "attn")]
    joining = [m for m in modules if m not in attending]
    widths = [*layout.skip_channels, layout.middle_channels]
    features = [torch.randn(1, width, 4, 4) for width in widths]
    join = connector.bind(features, scale)

    def controlled_skip(module: Any, c: Tensor, skip: Tensor, h: Tensor | None) -> Tensor:
        if kind == "residual":
            added = torch.einsum("oi,bihw->bohw", module.weight[:, :, 0, 0], c)
            out = skip + scale * (added + module.bias[:, None, None])
        elif kind == "cross_attention":
            out = skip + scale * (module(skip, c) - skip)
        else:
            raw = skip if h is None else torch.cat([h, skip], dim=1)
            return raw + scale * (module(c, skip, h) - raw)
        return out if h is None else torch.cat([h, out], dim=1)

    with torch.no_grad():
        h = torch.randn(1, widths[-1], 4, 4)
        expected = controlled_skip(joining[-1], features[-1], h, None)
        torch.testing.assert_close(join.middle(h), expected)
        for index, plan in enumerate(layout.decoder):
            c, module = features[:-1][::-1][index], joining[:-1][::-1][index]
            skip = torch.randn(1, plan.skip_channels, 4, 4)
            h = torch.randn(1, plan.channels, 4, 4)
            expected = controlled_skip(module, c, skip, h)
            torch.testing.assert_close(join.skip(h, skip, index), expected)
            h = torch.randn(1, plan.out_channels, 4, 4)
            if plan.upsamples and attending:
                (module,) = attending  # one upsampling in this UNet
                torch.testing.assert_close(
                    join.upsample(h, index), h + scale * (module(h, c) - h)
                )  # fmt: skip
            else:
                assert torch.equal(join.upsample(h, index), h)


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


def test_plain_connector_trains_with_a_zero_gradient() -> None:
    """The ablation without control runs like the others; its output is the UNet's, exactly."""
    features = [torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(2)]
    h = torch.randn(1, 8, 2, 2)
    out = PlainConnector(**NUMBERS).bind(features, 1.0).middle(h)
    assert torch.equal(out, h)
    (gradient,) = torch.autograd.grad(out.sum(), features[-1])
    assert not gradient.any()


def test_hidden_channels_of_zero_are_refused() -> None:
    """A network of no channels would be built, and never learn."""
    with pytest.raises(ValueError, match="connector.hidden must be at least 1 channel, got 0"):
        ZeroSFT(8, 32, hidden=0)
