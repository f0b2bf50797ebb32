"""Control adaptor: initialisation, size, and where gradients go."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.networks import Conditioning, ControlAdaptor, ControlledUNet, UNet
from src.networks.build import build_network
from tests.conftest import TRUNK, controlled
from tests.test_configs import CONF, plain


def test_adaptor_starts_as_the_unets_encoder(unet: UNet) -> None:
    """Holding the UNet's weights, and with its zero hint, its features equal the UNet's own."""
    control = controlled(unet).control
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    cond = Conditioning(torch.randn(1, 77, 32), torch.randn(1, 40))
    with torch.no_grad():
        features = control(x, t, cond, torch.randn(1, 4, 8, 8))
        middle, skips = unet.encode(x, unet.embed(t, cond.vector), cond.context)
    for own, expected in zip(features, [*skips, middle], strict=True):
        assert torch.equal(own, expected)


def test_reset_hint_gives_it_zeros_wherever_it_was_built() -> None:
    with torch.device("meta"):
        control = ControlAdaptor(**TRUNK)
    control.reset_hint()
    hint = control.input_hint_block[0]
    assert not hint.weight.is_meta and not hint.weight.any() and not hint.bias.any()
    assert hint.weight.requires_grad


def test_only_adaptor_and_connector_get_gradients(unet: UNet) -> None:
    network = controlled(unet)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    cond = Conditioning(torch.randn(1, 77, 32), torch.randn(1, 40))
    network(x, t, cond, torch.randn(1, 4, 8, 8)).square().mean().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient and not any(name.startswith("unet.") for name in with_gradient)
    assert any(name.startswith("control.input_blocks") for name in with_gradient)
    assert any(name.startswith("connector.") for name in with_gradient)


def test_mismatched_widths_are_refused(unet: UNet) -> None:
    narrow = ControlAdaptor(**{**TRUNK, "channel_mult": [1, 1]})
    with pytest.raises(ValueError, match="must share model_channels"):
        ControlledUNet(unet, narrow, controlled(unet).connector)


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [("full", 1_243_378_880), ("half", 702_031_040), ("third", 597_763_520)],
)
def test_full_size_adaptors_have_the_known_sizes(depth: str, parameters: int) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = ["experiment=zerosft", "scale=sdxl", f"control={depth}", "weights.sdxl=x"]
        cfg = compose("train", overrides=[*overrides, "data.root=x"])
    with torch.device("meta"):
        control = build_network(plain(cfg, "control"))
    assert sum(p.numel() for p in control.parameters()) == parameters
