"""Both stages train toward the degradation's target, which may be a sharpened HQ."""

from collections.abc import Callable

import pytest
import torch

from open_supir.networks import AutoencoderKL, Conditioner, UNet
from tests.training.modules import batch, darken, robust_module, supir_module


class Shifted:
    """`darken`, and a target that is not HQ."""

    __call__ = staticmethod(darken)

    @staticmethod
    def target(hq: torch.Tensor) -> torch.Tensor:
        return hq - 0.5


def stages(unet: UNet, vae: AutoencoderKL, conditioner: Conditioner) -> dict[str, Callable]:
    return {
        "robust_encoder": lambda degradation: robust_module(vae, degradation=degradation),
        "supir": lambda degradation: supir_module(unet, vae, conditioner, degradation=degradation),
    }


@pytest.mark.parametrize("stage", ["robust_encoder", "supir"])
def test_loss_is_against_the_target(
    stage: str, unet: UNet, vae: AutoencoderKL, conditioner: Conditioner
) -> None:
    """LQ is the same in both, so only the target can change the loss."""
    build = stages(unet, vae, conditioner)[stage]
    losses = []
    for degradation in (darken, Shifted()):
        module = build(degradation)
        module.log = module.log_dict = lambda *args, **kwargs: None
        losses.append(float(module.training_step(batch(), 0)["loss"].detach()))
    assert abs(losses[0] - losses[1]) > 1e-3
