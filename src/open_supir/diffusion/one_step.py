"""OneStepSettings: one evaluation of the network, from the degraded image's latent, without noise.

With x = sqrt(1 + sigma^2) z_lq the network's input c_in x is z_lq itself, and the denoiser's
estimate is the restored latent. B batch, h w latent size; latents are scaled and float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from open_supir.base.registry import register
from open_supir.diffusion.sampler_settings import SamplerSettings
from open_supir.diffusion.samplers import Denoise, OnStep, Randn, Step


@register
@dataclass(frozen=True, kw_only=True)
class OneStepSettings(SamplerSettings):
    """How a one-step model restores. Tiles, `control_scale` and their strengths act as ever.

    Raises:
        ValueError: A setting is asked for that has no meaning in one step.
    """

    num_steps: int = 1
    cfg_scale: float = 1.0
    s_churn: float = 0.0
    s_noise: float = 1.0
    sigma: float | None = None  # noise level that the network is told; None: not measured yet

    def __post_init__(self) -> None:
        super().__post_init__()
        learned = "; what it would do is in the weights of a one-step model"
        refused = {
            "num_steps": (self.num_steps != 1, "a one-step model has a single step"),
            "cfg_scale": (
                self.cfg_scale != 1 or self.cfg_scale_start not in (None, 1),
                f"guidance needs a second evaluation{learned}",
            ),
            "tau": (
                self.tau is not None,
                "restoration guidance pulls between steps, and there is only one; to stay closer "
                "to the input, lower strength or control_scale",
            ),
        }
        for name, (is_wrong, why) in refused.items():
            if is_wrong:
                raise ValueError(f"{name}={getattr(self, name)}: {why}")
        if self.sigma is not None and not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be a positive number, got {self.sigma}")

    def sigmas(self) -> list[float]:
        """Return the noise level and 0."""
        if self.sigma is None:
            raise ValueError("sigma is not set: training measures it and stores it in the recipe")
        return [self.sigma, 0.0]

    def start(self, z_lq: Tensor, sigma: float, randn: Randn) -> Tensor:
        """Return the latent whose scaled version is `z_lq`."""
        return z_lq * math.sqrt(1 + sigma**2)

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        randn: Randn,
        on_step: OnStep | None,
    ) -> Tensor:
        """Return the estimate of the clean latent from x (B, C, h, w)."""
        step = Step(0, sigmas[0], sigmas[0], 0.0)
        denoised = denoise(x, step)
        if on_step is not None:
            on_step(step, denoised, denoised)
        return denoised


def matched_sigma(error: float, signal: float) -> float:
    """Return the sigma of equal signal-to-noise: sigma^2 = E[(z_lq - z)^2] / E[z^2].

    Source: OMGSR (arXiv:2508.08227).

    Args:
        error: Mean squared difference of the degraded images' latents and the clean ones.
        signal: Mean square of the clean ones.

    Raises:
        ValueError: One of them is not positive.
    """
    if not (error > 0 and signal > 0):
        raise ValueError(f"error and signal must be positive, got {error} and {signal}")
    return math.sqrt(error / signal)
