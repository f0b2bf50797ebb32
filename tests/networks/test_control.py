"""Control adaptor: initialisation, size, and where gradients go."""

import pytest
import torch

from open_supir.networks import Conditioning, ControlAdaptor, ControlledUNet, UNet
from tests.conftest import TRUNK, controlled, randomise


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


def _guided_inputs() -> tuple:
    """Two halves of guidance over a batch of two: x and t repeated, conditions of their own."""
    x, z_lq = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    cond = Conditioning(torch.randn(4, 77, 32), torch.randn(4, 40))
    t = torch.tensor([10, 700])
    return torch.cat([x, x]), torch.cat([t, t]), cond, z_lq


@pytest.mark.parametrize("sees_text", [True, False])
@torch.no_grad()
def test_latent_given_once_for_both_halves_changes_nothing(unet: UNet, sees_text: bool) -> None:
    network = randomise(controlled(unet))
    network.control.sees_text = sees_text
    x, t, cond, z_lq = _guided_inputs()
    plain = network(x, t, cond, torch.cat([z_lq, z_lq]))
    torch.testing.assert_close(network(x, t, cond, z_lq), plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adaptor_that_sees_no_text_is_made_once_for_both_halves(unet: UNet) -> None:
    network = randomise(controlled(unet))
    network.control.sees_text = False
    x, t, cond, z_lq = _guided_inputs()
    rows: list[int] = []
    network.control.time_embed.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    network(x, t, cond, z_lq)
    assert rows == [2]
    both = torch.cat([z_lq, z_lq])
    one, other = (
        network.control(x, t, Conditioning(*(field * s for field in cond)), both)
        for s in (1.0, -3.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
