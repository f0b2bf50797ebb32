"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024).

torch.optim.Muon takes matrices only. Here, kernels of convolutions count as matrices (output
channels by everything else), and the groups that are not orthogonal are updated by Adam.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of Jordan's polynomial, applied five times
MOMENTUM = 0.95
RMS = 0.2  # of an update in units of the rate: AdamW's, so that rates carry over (arXiv:2502.16982)


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for kernels, Adam for the rest.

    Small networks learn several times faster with it than with AdamW, at the same rates
    (benchmarks/results/tiny_demo.md).

    Args:
        params: Unsharded parameters, or groups of them; `orthogonal=False` in a group means Adam.
        lr: Learning rate.
        betas: Adam's.
        weight_decay: Decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "orthogonal": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, grad = self.state[parameter], parameter.grad
                if group["orthogonal"]:
                    update = self._orthogonal(state, grad)
                else:
                    update = self._adam(state, grad, group["betas"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"])
        return loss

    @staticmethod
    def _orthogonal(state: dict[str, Any], grad: Tensor) -> Tensor:
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        momentum = state["momentum"].mul_(MOMENTUM).add_(grad)
        update = orthogonalised(grad.add(momentum, alpha=MOMENTUM).flatten(1))
        return update.view(grad.shape) * (RMS * max(update.shape) ** 0.5)

    @staticmethod
    def _adam(state: dict[str, Any], grad: Tensor, betas: tuple[float, float]) -> Tensor:
        if not state:
            state["steps"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
        state["steps"] += 1
        first, second = betas
        mean = state["mean"].lerp_(grad, 1 - first) / (1 - first ** state["steps"])
        square = state["square"].lerp_(grad.square(), 1 - second) / (1 - second ** state["steps"])
        return mean / (square.sqrt() + 1e-8)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix (m, n) with its singular values moved to about 1 (0.7 to 1.2).

    Each iteration multiplies from the left by a polynomial of the Gram matrix, so that all of them
    are done on that small matrix and their product is applied once.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(5):
        factor = b * gram + c * gram @ gram
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    result = product @ wide
    return result.T if matrix.shape[0] > matrix.shape[1] else result
