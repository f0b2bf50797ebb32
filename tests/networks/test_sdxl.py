"""The released sizes have the published numbers of parameters."""

from typing import Any

import pytest

from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture

# SUPIR's release: ten ZeroSFT and two cross-attentions; the paper's has the ten alone.
CROSS_ATTENTION = 4_920_320 + 1_231_360
SKIPS = [320] * 4 + [640] * 3 + [1280] * 2 + [1280]  # the middle last
CONNECTORS = {
    "zerosft_released": 54_797_440,
    "zerosft": 54_797_440 - CROSS_ATTENTION,
    "residual": sum(c * c + c for c in SKIPS),  # a 1x1 convolution each
    # two norms, q, k, v without and an output with bias
    "cross_attention": sum(2 * 2 * c + 4 * c * c + c for c in SKIPS),
    "plain": 0,
}
CONTROLS = {"full": 1_243_378_880, "half": 702_031_040, "third": 597_763_520}


def numbers(spec: Any) -> int:
    module = build_on_meta(spec)
    assert all(parameter.is_meta for parameter in module.parameters())
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("connector", "expected"), CONNECTORS.items())
def test_connectors_have_the_known_sizes(connector: str, expected: int) -> None:
    assert numbers(sdxl_architecture(connector=connector)["connector"]) == expected


@pytest.mark.parametrize(("control", "expected"), CONTROLS.items())
def test_adaptors_have_the_known_sizes(control: str, expected: int) -> None:
    assert numbers(sdxl_architecture(control=control)["control"]) == expected


def test_text_towers_have_no_visual_half() -> None:
    conditioner = build_on_meta(sdxl_architecture()["conditioner"])
    counts = [
        sum(p.numel() for p in tower.parameters())
        for tower in (conditioner.clip_l, conditioner.clip_g)
    ]
    assert counts == [123_060_480, 694_659_840]  # bigG without its logit_scale
    assert not [name for name in conditioner.state_dict() if "visual" in name]
    assert (conditioner.context_dim, conditioner.vector_dim) == (2048, 2816)


def test_unknown_options_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown control 'deep'; known: full, half, third"):
        sdxl_architecture(control="deep")
    with pytest.raises(ValueError, match="unknown connector 'none'; known: cross_attention, plain"):
        sdxl_architecture(connector="none")
