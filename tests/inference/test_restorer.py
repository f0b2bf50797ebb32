import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.diffusion import Denoiser, RestoreSettings
from src.inference import NoCaptioner, Restorer
from src.inference.restorer import noise_seed
from tests.inference.standins import (
    StandInConditioner,
    StandInNetwork,
    StandInRobustEncoder,
    StandInVae,
)

SETTINGS = RestoreSettings(num_steps=3, cfg_scale=2.0)


def _restorer(**options) -> Restorer:
    options = dict(settings=SETTINGS, count_tokens=lambda text: len(text.split())) | options
    parts = (StandInNetwork(), Denoiser(), StandInConditioner(), StandInVae())
    return Restorer(*parts, StandInRobustEncoder(), **options)  # type: ignore[arg-type]


def _image(height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (7, 50), (1, 1), (3, 200)])
def test_any_size_comes_back_in_its_own_size_and_range(size: tuple[int, int]) -> None:
    image = _image(*size)
    result = _restorer()(image)
    for out in (result.restored, result.cleaned):
        assert out.shape == image.shape and out.dtype == torch.float32
        assert out.min() >= 0 and out.max() <= 1


def test_batch_axis_is_kept() -> None:
    image = _image()
    one, batch = _restorer()(image).restored, _restorer()(image[None]).restored
    assert batch.shape == (1, *image.shape) and torch.equal(batch[0], one)


def test_perfect_network_restores_what_the_robust_encoder_sees() -> None:
    """Tolerance: eps arithmetic at sigma 14 keeps about 5 digits in float32."""
    image = _blocks(_image(8, 12))
    result = _restorer(color_fix="none")(image)
    torch.testing.assert_close(result.cleaned, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.restored, image, atol=1e-4, rtol=0)


def _blocks(small: Tensor) -> Tensor:
    """Enlarge 4x by repetition: such an image survives the stand-in autoencoder."""
    return small.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)


def test_padding_reaches_the_networks_multiple_and_is_cropped() -> None:
    restorer = _restorer()
    restorer(_image(33, 47))
    assert restorer.network.sizes_seen == {(10, 12)}  # 40x48 pixels: multiples of 4 * 2


def test_same_seed_repeats_and_another_does_not() -> None:
    # control 0: the network's clean latent is 0 and the noise added at the last step remains
    settings = dataclasses.replace(SETTINGS, control_scale=0.0, sampler="heun", cfg_scale=1.0)
    restorer = _restorer(settings=settings)
    seeds: list[Tensor] = []
    for seed in (3, 3, 4):
        restorer(_image(), seed=seed, on_step=lambda s, x, d: seeds.append(x) if not s.index else 0)
    assert torch.equal(seeds[0], seeds[1]) and not torch.allclose(seeds[0], seeds[2])


def test_noise_depends_on_content_and_seed_only() -> None:
    image = _image()[None]
    assert noise_seed(image, 1) == noise_seed(image.double(), 1) >= 0
    assert noise_seed(image, 1) != noise_seed(image, 2)
    assert noise_seed(image, 1) != noise_seed(1 - image, 1)
    assert noise_seed(image, 1) != noise_seed(image.reshape(1, 3, 48, 32), 1)


def test_global_random_state_is_neither_read_nor_changed() -> None:
    restorer = _restorer()
    before = torch.manual_seed(0).get_state()
    first = restorer(_image()).restored
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, restorer(_image()).restored)


def test_caption_comes_from_the_caller_then_from_the_captioner() -> None:
    seen: list[tuple[torch.Size, Path | None]] = []

    def captioner(image: Tensor, *, source: Path | None = None) -> str:
        seen.append((image.shape, source))
        return "a cat"

    restorer = _restorer(captioner=captioner, positive_prompt="sharp", negative_prompt="bad")
    result = restorer(_image(33, 47), source=Path("x.png"))
    assert (result.caption, result.prompt) == ("a cat", "a cat, sharp")
    assert seen == [((3, 33, 47), Path("x.png"))]
    assert [c[0] for c in restorer.conditioner.calls] == [["a cat, sharp"], ["bad"]]
    assert restorer(_image(), caption="a dog").prompt == "a dog, sharp" and len(seen) == 1


def test_size_condition_is_told_whatever_the_size() -> None:
    restorer = _restorer(size_condition=(1024, 1024), captioner=NoCaptioner())
    restorer(_image(33, 47))
    assert restorer.conditioner.calls[0][1] == [[1024, 1024, 0, 0, 1024, 1024]]
    restorer = _restorer()
    restorer(_image(33, 47))
    assert restorer.conditioner.calls[0][1] == [[40, 48, 0, 0, 40, 48]]


def test_scale_enlarges_and_min_side_works_enlarged_only() -> None:
    assert _restorer()(_image(20, 30), scale=2.5).restored.shape == (3, 50, 75)
    restorer = _restorer(min_side=64)
    assert restorer(_image(20, 30)).restored.shape == (3, 20, 30)
    assert restorer.network.sizes_seen == {(16, 24)}  # 64x96 pixels


def test_cleaned_image_is_encoded_only_for_a_center_that_needs_it() -> None:
    encoded = {}
    for name, changes in (
        ("off", {}),
        ("lq", dict(tau=4.0, center="lq")),
        ("clean", dict(tau=4.0)),
    ):
        restorer = _restorer()
        restorer(_image(), settings=dataclasses.replace(SETTINGS, **changes))
        encoded[name] = restorer.vae.encoded
    assert encoded == {"off": 0, "lq": 0, "clean": 1}


def test_color_fix_brings_the_cleaned_colours_back() -> None:
    """Control 0 gives a grey image; AdaIN has to return the cleaned image's channel means."""
    settings = dataclasses.replace(SETTINGS, control_scale=0.0)
    result = _restorer(settings=settings, color_fix="adain")(_image() * 0.4 + 0.3)
    torch.testing.assert_close(
        result.restored.mean(dim=(1, 2)), result.cleaned.mean(dim=(1, 2)), atol=2e-3, rtol=0
    )


def test_tiled_equals_untiled_for_a_pointwise_network() -> None:
    image = _image(96, 160)
    tiled = _restorer()(image, settings=dataclasses.replace(SETTINGS, tile=16, tile_batch=3))
    torch.testing.assert_close(tiled.restored, _restorer()(image).restored, atol=1e-4, rtol=0)


def test_input_is_not_written_to() -> None:
    image = _image()
    before = image.clone()
    _restorer()(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    "image", [torch.zeros(2, 3, 8, 8), torch.zeros(1, 8, 8), torch.zeros(3, 8, 8).byte()]
)
def test_what_is_no_image_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        _restorer()(image)


def test_unknown_color_fix_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="wavelet, adain, none"):
        _restorer(color_fix="hsv")
