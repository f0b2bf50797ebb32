"""Fixtures of inference tests."""

import pytest

from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.inference import Restorer
from open_supir.networks import RobustEncoder
from tests.conftest import controlled, randomise


@pytest.fixture
def restorer(unet, vae, conditioner) -> Restorer:
    """Random networks, two steps with guidance, no colour fix."""
    return Restorer(
        randomise(controlled(unet)),
        Denoiser(),
        conditioner,
        randomise(vae),
        RobustEncoder(vae),
        sampler=SamplerSettings(num_steps=2, cfg_scale=2.0),
        size_condition=[128, 128],
        color_fix="none",
    )
