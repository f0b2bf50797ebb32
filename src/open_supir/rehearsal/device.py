"""A pretended GPU: CUDA tensors that have shapes, strides and lifetimes, and no values.

`FakeTensorMode` gives such tensors to any code. What it lacks on a machine without a GPU is here:
a backward pass, autocast, and the choice of attention kernels. Autograd's engine asks the driver
for the devices of the graph before it starts. An accelerator of our own (PyTorch's PrivateUse1)
answers instead, and while the engine runs, `Meter` tells it that the tensors are on meta, which
needs no streams. A process that has pretended keeps that accelerator, which says that it is not
available.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import checkpoint

from open_supir.networks import layers

FLASH_HEADS = 256  # widest head of the flash kernel
_engine_runs = False


class NotPretended(RuntimeError):
    """This torch cannot pretend to have a GPU; the message says why."""


@contextmanager
def pretended_gpu(*, backward: bool) -> Iterator[None]:
    """Inside the block, tensors on `cuda` have no values, and nothing needs a GPU.

    Args:
        backward: Whether gradients will be asked for.

    Raises:
        NotPretended: This torch lacks what it takes.
    """
    has_gpu = torch.cuda.is_available()
    if backward:
        prepare_backward()
    with ExitStack() as stack:
        replace = lambda owner, name, value: stack.enter_context(replaced(owner, name, value))  # noqa: E731
        replace(F, "scaled_dot_product_attention", _fused_attention)
        if not has_gpu:
            replace(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            replace(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
            run = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
            for owner in (torch.autograd, torch.autograd.graph):
                replace(owner, "_engine_run_backward", _noting(run))
            replace(layers, "checkpoint", _checkpoint)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def prepare_backward() -> None:
    """Prepare for a pretended backward pass, which must happen before the process's first one.

    Raises:
        NotPretended: This torch lacks what it takes.
    """
    if not torch.cuda.is_available():
        _answer_for_the_driver()


def engine_asks() -> bool:
    """Return whether autograd's engine is at work, and recomputes no checkpointed layer."""
    return _engine_runs


@contextmanager
def _engine(runs: bool) -> Iterator[None]:
    global _engine_runs
    before, _engine_runs = _engine_runs, runs
    try:
        yield
    finally:
        _engine_runs = before


def _checkpoint(*args: Any, **kwargs: Any) -> Any:
    """Recompute as in a forward pass, not as the engine."""
    return checkpoint(*args, context_fn=lambda: (nullcontext(), _engine(False)), **kwargs)


@cache
def _answer_for_the_driver() -> None:
    """Register the accelerator that the engine asks; once for the process."""
    if not torch.backends.cuda.is_built():
        raise NotPretended("this torch is built without CUDA")
    try:
        from torch.utils import backend_registration as backends

        class Hook(backends._DummyPrivateUse1Hook):
            def is_available(self) -> bool:
                return False

            def has_primary_context(self, dev_id: int) -> bool:
                return False

        class Backend(backends._DummyBackendModule):
            def is_available(self) -> bool:
                return False

            def device_count(self) -> int:
                return 0

        torch._C._ensureCUDADeviceGuardSet()
        backends._setup_privateuseone_for_python_backend(
            "pretended", backend_module=Backend(), hook=Hook()
        )
    except (ImportError, AttributeError, RuntimeError) as error:
        raise NotPretended(f"torch {torch.__version__} cannot: {error}") from error


def _noting(run: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        with _engine(True):
            return run(*args, **kwargs)

    return noted


_attention = F.scaled_dot_product_attention


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Choose as PyTorch does on CUDA: flash, else memory-efficient, else plain attention."""
    inputs = (query, key, value)
    if not isinstance(query, FakeTensor) or query.device.type != "cuda":
        return _attention(
            *inputs, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    aten = torch.ops.aten
    if any(t.stride(-1) != 1 for t in inputs):
        return aten._scaled_dot_product_attention_math(
            *inputs, attn_mask, dropout_p, is_causal, scale=scale
        )[0]
    width, is_half = query.shape[-1], query.dtype in (torch.bfloat16, torch.float16)
    if attn_mask is None and is_half and width <= FLASH_HEADS and width % 8 == 0:
        flash = aten._scaled_dot_product_flash_attention
        return flash(*inputs, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    has_graph = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(*inputs, attn_mask, has_graph, dropout_p, is_causal, scale=scale)[0]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
