"""No wasted gradient: what stage 2's loss keeps for its gradients, and what it does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.naive_step import naive_loss, train_everything
from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.networks.layers import BasicTransformerBlock
from tests.conftest import randomise
from tests.training.modules import batch, robust_module, supir_module


@pytest.fixture
def module(unet: UNet, vae: AutoencoderKL, conditioner: Conditioner):
    module = supir_module(unet, vae, conditioner)
    randomise(module.network)  # zeros at the start would hide gradients
    return module


def frozen_encoder(module: Any) -> list[nn.Module]:
    """Everything that needs no graph: all but adaptor, connector and the UNet's decoder."""
    unet = module.network.unet
    return [
        unet.time_embed, unet.label_emb, unet.input_blocks, unet.middle_block, module.vae,
        module.robust_encoder, module.conditioner,
    ]  # fmt: skip


def graph_leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield every tensor that the graph would give a gradient to."""
    seen, queue = set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        queue += [parent for parent, _ in node.next_functions]


def test_nothing_of_the_frozen_encoders_is_in_the_graph(module: Any) -> None:
    outputs: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        outputs.extend(
            o for o in (output if isinstance(output, tuple) else (output,)) if o is not None
        )

    for part in frozen_encoder(module):
        for layer in part.modules():
            layer.register_forward_hook(note)
    saved: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module.training_step(batch(), 0)["loss"]
    assert len(outputs) > 50 and not any(o.requires_grad for o in outputs)
    trained = {
        id(p) for name, p in module.named_parameters() if name in set(module.trained_names())
    }
    leaves = {id(leaf) for leaf in graph_leaves(loss)}
    assert leaves <= trained and len(leaves) > 0.9 * len(trained)
    for part in frozen_encoder(module):
        for name, parameter in part.named_parameters():
            assert parameter.untyped_storage().data_ptr() not in saved, name


def test_gradients_equal_those_of_the_naive_computation(module: Any) -> None:
    """Against everything in the graph: 1e-6 of each gradient's size, in float64.

    Some gradients are zero (a bias before a norm takes it out): there both sides are rounding, at
    1e-12 of the whole gradient.
    """
    given = batch()
    module = module.double()
    trained = module.trained_names()
    module.training_step(given, 0)["loss"].backward()
    ours = {n: p.grad.clone() for n, p in module.named_parameters() if n in set(trained)}
    module.zero_grad()
    train_everything(module)
    naive_loss(module, given).backward()
    parameters = dict(module.named_parameters())
    assert parameters["network.unet.input_blocks.0.0.weight"].grad is not None
    whole = torch.stack([grad.norm() for grad in ours.values()]).norm()
    for name in trained:
        difference = (parameters[name].grad - ours[name]).norm()
        assert difference <= 1e-6 * ours[name].norm() + 1e-12 * whole, name
    assert sum(g.norm() > 1e-6 * whole for g in ours.values()) > 0.8 * len(ours)


def test_stage_1_keeps_no_graph_of_the_target(vae: AutoencoderKL) -> None:
    module = robust_module(vae)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = module.training_step(batch(), 0)["loss"]
    encoder = {id(p) for p in module.robust_encoder.encoder.parameters()}
    assert {id(leaf) for leaf in graph_leaves(loss)} == encoder


def test_norms_stay_in_their_type_under_autocast(module: Any) -> None:
    """Autocast would run them in float32 and keep its copies for the gradients."""
    kinds: dict[str, set[torch.dtype]] = {}

    def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        kinds.setdefault(type(layer).__name__, set()).add(output.dtype)

    for layer in module.network.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.register_forward_hook(note)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.training_step(batch(), 0)["loss"].backward()
    assert kinds == {"GroupNorm": {torch.bfloat16}, "LayerNorm": {torch.bfloat16}}
    norm = module.network.control.input_blocks[1][0].in_layers[0]
    assert norm.weight.dtype == norm.weight.grad.dtype == torch.float32


def test_the_compiled_block_is_one_graph_under_autocast() -> None:
    """What `compile=regional` compiles; a break in the graph would cost its speed."""
    torch._dynamo.reset()
    block = BasicTransformerBlock(32, context_width=32, heads=1)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    x, context = torch.randn(1, 4, 32), torch.randn(1, 7, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(x, context), block(x, context))
    torch._dynamo.reset()
