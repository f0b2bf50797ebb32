"""The analytic count on meta: FLOPs, and what one sample keeps for its gradients.

Used where no GPU can be pretended. Networks run on tensors without memory, one sample at a time, in
the dtype that they compute in; a step's peak is then a sum, without what is used for a moment.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from open_supir.networks import ControlledUNet
from open_supir.networks.conditioner import Conditioning
from open_supir.networks.switches import checkpoint_activations
from open_supir.rehearsal.device import replaced
from open_supir.rehearsal.meter import Phase
from open_supir.rehearsal.training import TrainingCost, TrainingPlan
from open_supir.training import RobustEncoderModule, SupirModule
from open_supir.training.trained_parts import TrainedParts


class FusedAttention(torch.autograd.Function):
    """Attention's products, without keeping what a fused kernel recomputes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the shape of softmax(q k) v."""
        out = (q @ k.mT) @ v
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients' shapes: five products."""
        q, k, v, _ = ctx.saved_tensors
        weights = q @ k.mT
        inner = grads[0] @ v.mT
        return inner @ k, inner.mT @ q, weights.mT @ grads[0]


def count_training(module: TrainedParts, plan: TrainingPlan) -> TrainingCost:
    """Count a step of stage 1 or 2 on meta.

    Raises:
        ValueError: The module is of another kind.
    """
    checkpoint_activations(module, plan.checkpointing)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters()) - trained
    static = 4 * trained + plan.frozen.itemsize * frozen
    dtype = plan.autocast or torch.float32
    module.to_empty(device="meta").to(dtype)
    crops, image = plan.micro_batch, torch.empty(1, 3, plan.crop, plan.crop, device="meta")
    if isinstance(module, SupirModule):
        vae = module.vae
        latent = plan.crop // vae.downsampling
        forward, backward, kept = network_cost(
            module.network, latent, module.conditioner.context_dim, module.conditioner.vector_dim
        )
        encodes = 2 * flops_of(lambda: vae.encode(image))
    elif isinstance(module, RobustEncoderModule):
        vae, robust = module.vae, module.robust_encoder
        forward, backward, kept = step_cost(module, lambda: vae.decode(robust(image)))
        encodes = flops_of(lambda: vae.encode(image))
    else:
        raise ValueError(
            f"{type(module).__name__} cannot be counted on meta; needs torch with CUDA"
        )
    copies = dtype.itemsize * trained if plan.autocast else 0  # autocast's, of the weights
    resident = static + (12 if plan.keeps_gradients else 8) * trained
    peak = resident + copies + crops * kept
    step = {
        "encodes": Phase(flops=crops * encodes, peak=resident),
        "forward": Phase(flops=crops * forward, peak=peak),
        "backward": Phase(flops=crops * backward, peak=peak),
        "optimiser": Phase(peak=static + 12 * trained),
    }
    return TrainingCost(static=static, resident=resident, first=step, later=step)


def network_cost(
    network: ControlledUNet, latent: int, context_dim: int, vector_dim: int
) -> tuple[int, int, int]:
    """Return `step_cost` of one sample of the controlled UNet, on meta.

    Args:
        latent: Side in latent pixels.
        context_dim, vector_dim: Widths of text and vector; see `Conditioning`.
    """
    unet: Any = network.unet
    with torch.device("meta"):
        z = torch.empty(1, unet.input_blocks[0][0].in_channels, latent, latent)
        t = torch.zeros(1, dtype=torch.long)
        context, vector = torch.empty(1, 77, context_dim), torch.empty(1, vector_dim)
    cond = Conditioning(context, vector)
    return step_cost(network, lambda: network(z, t, cond, z))


def step_cost(module: nn.Module, run: Callable[[], Tensor]) -> tuple[int, int, int]:
    """Return FLOPs of forward and backward, and bytes kept for gradients besides parameters."""
    own = {id(p) for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # alive until counted, so that no id is used twice

    def pack(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if id(tensor) not in own and id(whole) not in own:
            kept[id(whole)] = whole
        return tensor

    with replaced(F, "scaled_dot_product_attention", FusedAttention.apply):
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = run()
            forward = counter.get_total_flops()
            out.sum().backward()
    module.zero_grad()
    size = sum(t.numel() * t.element_size() for t in kept.values())
    return forward, counter.get_total_flops() - forward, size


def flops_of(run: Callable[[], Any]) -> int:
    """Return the FLOPs of a call without a graph."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
