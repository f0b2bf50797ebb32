"""Small training modules over the fixtures' networks."""

from typing import Any

import torch

from open_supir.data.samples import Batch
from open_supir.diffusion import Denoiser, SamplerSettings, TableNoise
from open_supir.diffusion.one_step import OneStepSettings
from open_supir.networks import AutoencoderKL, Conditioner, RobustEncoder, UNet
from open_supir.training import OneStepModule, RobustEncoderModule, SupirModule
from open_supir.training.discriminators import PriorDiscriminator
from open_supir.training.one_step_module import OneStepLoss
from open_supir.training.optim import OptimSettings
from tests.conftest import WIDTHS, controlled


def darken(hq: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Stand for the degradation: half contrast, and a shift by the sample's seed."""
    return 0.5 * hq - seeds.to(hq)[:, None, None, None] / 100


darken.target = lambda hq: hq  # type: ignore[attr-defined]


def batch(size: int = 2) -> Batch:
    """Return a random batch of crops of 32."""
    side = torch.full((size, 1), 32.0)
    return Batch(
        hq=torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8),
        caption=["a cat"] * size,
        sizes=torch.cat([side, side, 0 * side, 0 * side, side, side], dim=1),
        is_negative=torch.zeros(size, dtype=torch.bool),
        source=["photos"] * size,
        key=[f"k{i}" for i in range(size)],
        seed=torch.arange(size),
    )


def _stage_2(unet: UNet, vae: AutoencoderKL, conditioner: Conditioner) -> dict[str, Any]:
    """Return the arguments that stage 2 and its one-step student share."""
    return dict(
        network=controlled(unet),
        vae=vae,
        robust_encoder=RobustEncoder(vae),
        conditioner=conditioner,
        denoiser=Denoiser(),
        noise=TableNoise(),
        degradation=darken,
        negative_prompt="blurry",
        optim=OptimSettings(lr=1e-3),
    )


def supir_module(unet: UNet, vae: AutoencoderKL, conditioner: Conditioner, **changed: Any):
    """Return a stage-2 module; `changed` replaces arguments."""
    arguments = _stage_2(unet, vae, conditioner) | dict(
        sampler=SamplerSettings(num_steps=2),
        val_draws=2,
        recipe={},
    )
    return SupirModule(**{**arguments, **changed})


def robust_module(vae: AutoencoderKL, **changed: Any) -> RobustEncoderModule:
    """Return a stage-1 module; `changed` replaces arguments."""
    arguments: dict[str, Any] = dict(
        vae=vae,
        robust_encoder=RobustEncoder(vae),
        degradation=darken,
        latent_weight=0.1,
        optim=OptimSettings(lr=1e-3),
        recipe={},
    )
    return RobustEncoderModule(**{**arguments, **changed})


def one_step_module(
    unet: UNet, vae: AutoencoderKL, conditioner: Conditioner, **changed: Any
) -> OneStepModule:
    """Return a one-step module; `changed` replaces arguments."""
    widths = {name: WIDTHS[name] for name in ("model_channels", "channel_mult", "num_res_blocks")}
    arguments = _stage_2(unet, vae, conditioner) | dict(
        sampler=OneStepSettings(sigma=0.572),
        val_draws=1,
        discriminator=PriorDiscriminator(**widths, width=8, noise=TableNoise()),
        perceptual=None,
        loss=OneStepLoss(),
        discriminator_optim=OptimSettings(lr=1e-3),
        snr_samples=4,
        recipe={"sampler": {}},
    )
    return OneStepModule(**{**arguments, **changed})
