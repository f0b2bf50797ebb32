"""Denoiser: turns the output of a network (noise, v, or EDM's raw output) into a clean estimate.

The estimate is c_skip * x + c_out * network(c_in * x, c_noise, ...), with the coefficients of
Karras et al. 2022 (arXiv:2206.00364, table 1) for each kind of prediction. B batch, h w latent
size.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from open_supir.base.registry import register
from open_supir.diffusion.schedule import fractional_index, index_to_sigma, nearest_index

Prediction = Literal["eps", "v", "edm"]
Network = Callable[..., Tensor]  # (x, t, cond, z_lq, control_scale) -> out


class Preconditioning(NamedTuple):
    """The coefficients at each sample's noise level, (B,) each."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def append_dims(values: Tensor, ndim: int) -> Tensor:
    """Append axes of length 1 to `values` (B,) until it has `ndim` axes."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def precondition(
    prediction: Prediction, sigma: Tensor, *, sigma_data: float = 0.5
) -> Preconditioning:
    """Return the coefficients for `sigma` (B,); only edm uses `sigma_data`."""
    if prediction == "eps":
        return Preconditioning(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt())
    if prediction == "v":
        variance = sigma**2 + 1
        return Preconditioning(1 / variance, -sigma * variance.rsqrt(), variance.rsqrt())
    variance = sigma**2 + sigma_data**2
    return Preconditioning(
        sigma_data**2 / variance, sigma * sigma_data * variance.rsqrt(), variance.rsqrt()
    )


@register
class Denoiser:
    """Estimates the clean latent from a noisy one with a network.

    Args:
        prediction: What the network was trained to output: "eps" (SDXL), "v", or "edm".
        quantize: Snap sigma to the DDPM table and give the network its int64 index, as SDXL and
            SUPIR do. Otherwise sigma is unchanged and the network gets the fractional index. edm
            has no table: its sigma is never snapped.
        sigma_data: Standard deviation of the clean latents; only edm uses it.

    Raises:
        ValueError: `prediction` is unknown, or `sigma_data` is not positive.
    """

    def __init__(
        self, prediction: Prediction = "eps", quantize: bool = True, *, sigma_data: float = 0.5
    ) -> None:
        if prediction not in get_args(Prediction):
            raise ValueError(
                f"unknown prediction {prediction!r}; known: {', '.join(get_args(Prediction))}"
            )
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.prediction: Prediction = prediction
        self.quantize = quantize
        self.sigma_data = sigma_data

    def __call__(
        self,
        network: Network,
        x: Tensor,
        sigma: Tensor,
        cond: Any,
        z_lq: Tensor | None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Estimate the clean latent (B, C, h, w), float32, from `x` at noise level `sigma` (B,).

        Args:
            network: Called once, as network(c_in * x, t, cond, z_lq, control_scale), with x in
                float32.
            x: (B, C, h, w) noisy latent.
            sigma: (B,) its noise level.
            z_lq: (B, C, h, w) latent of the degraded image, passed to the network; None means plain
                text-to-image.
        """
        x, sigma = x.float(), sigma.float()
        if self.prediction == "edm":
            t = sigma.log() / 4
        elif self.quantize:
            t = nearest_index(sigma)
            sigma = index_to_sigma(t)
        else:
            t = fractional_index(sigma)
        c_skip, c_out, c_in = (
            append_dims(c, x.ndim)
            for c in precondition(self.prediction, sigma, sigma_data=self.sigma_data)
        )
        out = network(c_in * x, t, cond, z_lq, control_scale).float()
        return c_skip * x + c_out * out
