import pytest
import torch

from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.inference.image_to_image import image_to_image
from tests.inference.standins import StandInConditioner, StandInNetwork, StandInVae

SETTINGS = SamplerSettings(num_steps=4, cfg_scale=2.0)


def _parts() -> tuple:
    return StandInNetwork(), Denoiser(), StandInConditioner(), StandInVae()


def test_one_seed_an_image_is_needed() -> None:
    with pytest.raises(ValueError, match="one seed"):
        image_to_image(
            *_parts(),
            torch.rand(1, 3, 16, 24),
            ["a"],
            [""],
            strength=0.5,
            settings=SETTINGS,
            seeds=[0, 1],
        )


def test_the_conditioner_is_told_the_size_of_the_images() -> None:
    parts, image = _parts(), torch.rand(1, 3, 13, 23)
    image_to_image(*parts, image, ["a"], ["b"], strength=0.5, settings=SETTINGS, seeds=[0])
    sizes = [[13, 23, 0, 0, 13, 23]]
    assert parts[2].calls == [(["a"], sizes), (["b"], sizes)]


def test_image_to_image_of_strength_zero_is_the_autoencoders_image() -> None:
    image = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    image = image.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)[..., :13, :23]
    out = image_to_image(*_parts(), image, ["a"], [""], strength=0.0, settings=SETTINGS, seeds=[0])
    assert out.shape == image.shape
    torch.testing.assert_close(out[..., :12, :20], image[..., :12, :20], atol=1e-6, rtol=0)


def test_image_to_image_goes_where_the_prior_goes() -> None:
    """The stand-in prior knows nothing but grey."""
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    out = image_to_image(
        *_parts(), image, ["a"] * 2, [""] * 2, strength=0.5, settings=SETTINGS, seeds=[0, 1]
    )
    torch.testing.assert_close(out, torch.full_like(out, 0.5), atol=1e-4, rtol=0)
