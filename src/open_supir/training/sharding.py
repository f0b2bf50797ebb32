"""FSDP2 as a strategy: splits weights, gradients and optimiser state over the devices.

It is meant for crops of 1024 on cards of 24 to 48 GB; if a device can hold everything, DDP is
faster. Checkpoints hold whole tensors in one file, as without sharding: they resume on any number
of devices, under either strategy, and all other commands read them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from open_supir.networks.connectors import ZeroCrossAttention, ZeroSFT
from open_supir.networks.layers import BasicTransformerBlock, ResBlock, SpatialTransformer

# Layers that are gathered one at a time; all are called as modules.
LAYERS = (BasicTransformerBlock, SpatialTransformer, ResBlock, ZeroSFT, ZeroCrossAttention)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices, with ordinary checkpoints.

    The module does the sharding in `configure_model`, by `shard_trained`.
    """

    def setup_environment(self) -> None:
        """Make a single data-parallel mesh of all devices."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning restores optimiser states through `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return whole tensors on rank 0; every rank must call this."""
        assert self.lightning_module is not None
        return self._gather(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the unsharded state on rank 0; every rank must call this."""
        state = optimizer.state_dict()
        moments = {index: self._gather(values) for index, values in state["state"].items()}
        return {**state, "state": moments if self.is_global_zero else {}}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load whole tensors; each rank keeps its shards."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {
            name: _like(tensor, own[name]) if name in own else tensor
            for name, tensor in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load whole optimiser states; each rank keeps its shards."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                index: {
                    name: _like(value, parameters[index])
                    if torch.is_tensor(value) and value.shape == parameters[index].shape
                    else value
                    for name, value in values.items()
                }
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write on rank 0, as other strategies do."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read on every rank, as other strategies do."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def _gather(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        gathered = {}
        for name, value in tensors.items():
            if isinstance(value, DTensor):
                value = value.full_tensor()  # collective; only rank 0 keeps it
            if self.is_global_zero:
                gathered[name] = value.cpu() if torch.is_tensor(value) else value
        return gathered


def shard_trained(
    module: nn.Module, mesh: DeviceMesh, *, compute_dtype: torch.dtype | None
) -> list[str]:
    """Shard each child of `module` that has trained parameters, including its frozen ones.

    Args:
        module: A training module; its children are called as modules.
        mesh: One-dimensional mesh of all devices.
        compute_dtype: The dtype that gathered weights are cast to; None keeps their own. Gradients
            are summed in float32.

    Returns:
        The names of the sharded children.

    Raises:
        ValueError: A trained parameter belongs to no child.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    loose = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]
    if loose:
        raise ValueError(f"cannot shard {loose[0]}: it is a parameter of the training module")
    sharded = []
    for name, child in module.named_children():
        if not any(p.requires_grad for p in child.parameters()):
            continue
        child.to(memory_format=torch.contiguous_format)  # FSDP2 refuses channels_last weights
        for layer in reversed(list(child.modules())):
            if isinstance(layer, LAYERS) and layer is not child:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        # The outermost module also frees its gathered weights after a forward without a backward,
        # because shards are read and written after validation.
        fully_shard(child, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for method in ("prepare",):  # called by the sampler, outside of forward
            if isinstance(getattr(child, method, None), Callable):
                register_fsdp_forward_method(child, method)
        sharded.append(name)
    return sharded


def _like(tensor: Tensor, example: Tensor) -> Tensor:
    """Return `tensor`, whole on every rank, sharded and placed like `example`."""
    if not isinstance(example, DTensor):
        return tensor
    local = tensor.to(example.device)
    return distribute_tensor(local, example.device_mesh, example.placements, src_data_rank=None)
