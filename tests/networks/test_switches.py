"""Checkpointing, compiling, memory layout: equal results, less kept, names unchanged."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from open_supir.networks import (
    AutoencoderKL,
    Conditioning,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from open_supir.networks.connectors import CrossAttentionConnector, ZeroSFTConnector
from open_supir.networks.layers import BasicTransformerBlock, ResBlock
from open_supir.networks.switches import checkpoint_activations, compile_networks
from open_supir.networks.vae import ResnetBlock
from tests.conftest import WIDTHS, controlled, randomise

NUMBERS: dict[str, Any] = dict(head_channels=32, **WIDTHS)


@pytest.fixture
def network(unet: UNet) -> ControlledUNet:
    """A controlled UNet with nothing zero in it, in float64: what differs is no rounding."""
    return randomise(controlled(unet, ZeroSFTConnector(cross_attention=True, **NUMBERS))).double()


class Decoding(nn.Module):
    """The autoencoder's decoder as a module."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


def inputs() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x, z_lq = torch.randn(2, 2, 4, 8, 12, generator=generator)
    context = torch.randn(2, 77, 32, generator=generator)
    vector = torch.randn(2, 40, generator=generator)
    return x, torch.tensor([10, 900]), Conditioning(context, vector), z_lq


def step(network: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and every gradient of its mean square."""
    network.zero_grad()
    out = network(*inputs())
    out.square().mean().backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return out.detach(), gradients


def assert_same_step(ours: Any, reference: Any, *, tolerance: float) -> None:
    """Equal to `tolerance` relative to each tensor's largest number.

    The output itself is float32, whatever the network is: hence 1e-6 where sums run otherwise.
    """
    assert (ours[0] - reference[0]).abs().max() <= tolerance * reference[0].abs().max()
    assert ours[1].keys() == reference[1].keys()
    for name, gradient in reference[1].items():
        # before a norm a bias has no gradient, only rounding; that has no scale of its own
        scale = max(gradient.abs().max().item(), 1e-6)
        assert (ours[1][name] - gradient).abs().max() <= tolerance * scale, name


def saved_numbers(network: nn.Module) -> int:
    """Count the numbers that one step keeps for its backward pass, parameters left out."""
    own = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(*inputs())
    return sum(kept.values())


@pytest.mark.parametrize("mode", ["transformer", "full"])
def test_checkpointing_changes_no_bit_of_output_and_gradients(
    network: ControlledUNet, mode: Any
) -> None:
    reference = step(network)
    assert checkpoint_activations(network, mode) > 0
    assert_same_step(step(network), reference, tolerance=0.0)


def test_checkpointing_keeps_less_the_more_it_covers(network: ControlledUNet) -> None:
    kept = []
    for mode in ("none", "transformer", "full"):
        checkpoint_activations(network, mode)
        kept.append(saved_numbers(network))
    assert kept[0] > kept[1] > kept[2], kept


@pytest.mark.parametrize("mode", ["transformer", "full"])
def test_checkpointing_covers_the_robust_encoder_and_the_decoder(
    vae: AutoencoderKL, mode: Any
) -> None:
    """Stage 1's path: the residual blocks, with "full" only; a block keeps its input alone."""
    network = nn.Sequential(RobustEncoder(randomise(vae)), Decoding(vae)).double()
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)).double()

    def kept_and_gradients() -> tuple[int, list[Tensor]]:
        network.zero_grad()
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(image)
        out.square().mean().backward()
        return sum(sizes.values()), [p.grad for p in network.parameters() if p.grad is not None]

    before, reference = kept_and_gradients()
    assert (checkpoint_activations(network, mode) > 0) == (mode == "full")
    kept, gradients = kept_and_gradients()
    assert kept < 0.6 * before if mode == "full" else kept == before
    assert all(torch.equal(*pair) for pair in zip(gradients, reference, strict=True))


def test_checkpointing_covers_the_cross_attention_connector(unet: UNet) -> None:
    network = randomise(controlled(unet, CrossAttentionConnector(**NUMBERS))).double()
    reference = step(network)
    checkpoint_activations(network, "full")
    assert_same_step(step(network), reference, tolerance=0.0)


def test_checkpointing_can_be_switched_off_again(network: ControlledUNet) -> None:
    before = saved_numbers(network)
    checkpoint_activations(network, "full")
    assert checkpoint_activations(network, "none") == 0
    assert saved_numbers(network) == before


@pytest.mark.parametrize("mode", ["regional", pytest.param("full", marks=pytest.mark.slow)])
def test_traced_network_computes_the_same(network: ControlledUNet, mode: Any) -> None:
    """The graphs that `torch.compile` captures, forward and backward, run without its code."""
    torch._dynamo.reset()
    reference = step(network)
    names = list(network.state_dict())
    checkpoint_activations(network, "transformer" if mode == "regional" else "none")
    assert compile_networks(network, mode, backend="aot_eager") > 0
    assert_same_step(step(network), reference, tolerance=1e-6)
    assert list(network.state_dict()) == names
    captured = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert captured > 0
    torch._dynamo.reset()


def test_regional_compilation_without_dynamic_keeps_every_size_fixed(
    network: ControlledUNet,
) -> None:
    """The UNet's levels differ in size, which would leave sizes open from the second level on."""
    torch._dynamo.reset()
    graphs, open_sizes = [], []

    def note(graph: torch.fx.GraphModule, values: list[Any]) -> Any:
        graphs.append(graph)
        sizes = [n for v in values for n in (v.shape if isinstance(v, Tensor) else (v,))]
        open_sizes.extend(size for size in sizes if isinstance(size, torch.SymInt))
        return graph.forward

    blocks = (BasicTransformerBlock, ResBlock)
    count = sum(isinstance(layer, blocks) for layer in network.modules())
    assert compile_networks(network, "regional", dynamic=False, backend=note) == count
    with torch.no_grad():
        network(*inputs())
    assert len(graphs) > 2 and open_sizes == []
    torch._dynamo.reset()


def test_regional_compilation_covers_the_autoencoder(vae: AutoencoderKL) -> None:
    blocks = sum(isinstance(layer, ResnetBlock) for layer in vae.modules())
    assert compile_networks(vae, "regional", backend="eager") == blocks > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("mode", ["regional", "full"])
def test_compiled_network_computes_the_same(network: ControlledUNet, mode: Any) -> None:
    torch._dynamo.reset()
    reference = step(network)
    compile_networks(network, mode)
    # the sines of the noise level, of up to 900 rad, are float32 and may be another library's
    assert_same_step(step(network), reference, tolerance=1e-5)
    torch._dynamo.reset()


def test_channels_last_computes_the_same(network: ControlledUNet, vae: AutoencoderKL) -> None:
    reference, image = step(network), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(image))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weight = network.unet.input_blocks[1][0].in_layers[2].weight  # type: ignore[index]
        assert weight.is_contiguous(memory_format=torch.channels_last)
        # fp32 sums in another order
        torch.testing.assert_close(vae.decode(vae.encode(image)), decoded, rtol=1e-5, atol=1e-5)
    assert_same_step(step(network), reference, tolerance=1e-6)


def test_unknown_modes_are_answered_with_the_known_ones(unet: UNet) -> None:
    with pytest.raises(ValueError, match="'some'; known: none, transformer, full"):
        checkpoint_activations(unet, "some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'on'; known: off, regional, full"):
        compile_networks(unet, "on")  # type: ignore[arg-type]
