"""Control adaptor: initialisation, size, and where gradients go."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.networks import Conditioning, ControlAdaptor, ControlledUNet, UNet
from src.networks.build import build_network
from tests.conftest import TRUNK, controlled, randomise
from tests.test_configs import CONF, plain


def test_adaptor_starts_as_the_unets_encoder(unet: UNet) -> None:
    """With its zero hint the fresh adaptor's features equal the UNet's own."""
    control = ControlAdaptor(**TRUNK)
    copied = control.initialise_from(unet)
    assert copied == len(control.state_dict()) - 2  # all but the hint's weight and bias
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([5])
    cond = Conditioning(torch.randn(1, 77, 32), torch.randn(1, 40))
    with torch.no_grad():
        features = control(x, t, cond, torch.randn(1, 4, 8, 8))
        middle, skips = unet.encode(x, unet.embed(t, cond.vector), cond.context)
    for own, expected in zip(features, [*skips, middle], strict=True):
        assert torch.equal(own, expected)


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


def _guided_inputs() -> tuple:
    """Two halves of guidance over a batch of two: x and t repeated, conditions of their own."""
    x, z_lq = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    cond = Conditioning(torch.randn(4, 77, 32), torch.randn(4, 40))
    t = torch.tensor([10, 700])
    return torch.cat([x, x]), torch.cat([t, t]), cond, z_lq


@pytest.mark.parametrize("sees_text", [True, False])
@torch.no_grad()
def test_hint_made_once_and_not_repeated_changes_nothing(unet: UNet, sees_text: bool) -> None:
    network = randomise(controlled(unet))
    network.control.sees_text = sees_text
    x, t, cond, z_lq = _guided_inputs()
    plain = network(x, t, cond, torch.cat([z_lq, z_lq]))
    prepared = network(x, t, cond, network.prepare(z_lq))
    torch.testing.assert_close(prepared, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adaptor_that_sees_no_text_is_made_once_for_both_halves(unet: UNet) -> None:
    network = randomise(controlled(unet))
    network.control.sees_text = False
    x, t, cond, z_lq = _guided_inputs()
    rows: list[int] = []
    network.control.time_embed.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    network(x, t, cond, network.prepare(z_lq))
    assert rows == [2]
    both = torch.cat([z_lq, z_lq])
    one, other = (
        network.control(x, t, Conditioning(*(field * s for field in cond)), both)
        for s in (1.0, -3.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
