import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.inference import NoCaptioner, Restorer, result
from open_supir.inference.pixels import noise_seed
from tests.inference.standins import (
    StandInConditioner,
    StandInNetwork,
    StandInRobustEncoder,
    StandInVae,
)

SETTINGS = SamplerSettings(num_steps=3, cfg_scale=2.0)


def _restorer(**options) -> Restorer:
    options = dict(sampler=SETTINGS, count_tokens=lambda text: len(text.split())) | options
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
    restorer = _restorer(sampler=settings)
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


def test_scale_enlarges_and_min_size_works_enlarged_only() -> None:
    assert _restorer()(_image(20, 30), scale=2.5).restored.shape == (3, 50, 75)
    restorer = _restorer(min_size=64)
    assert restorer(_image(20, 30)).restored.shape == (3, 20, 30)
    assert restorer.network.sizes_seen == {(16, 24)}  # 64x96 pixels


def test_cleaned_image_is_encoded_only_for_a_center_that_needs_it() -> None:
    encoded = {}
    for name, changes in (
        ("off", {}),
        ("lq", dict(tau=4.0, center="lq")),
        ("clean", dict(tau=4.0)),
        ("clean_sampled", dict(tau=4.0, center="clean_sampled")),
    ):
        restorer = _restorer()
        restorer(_image(), sampler=dataclasses.replace(SETTINGS, **changes))
        encoded[name] = restorer.vae.encoded
    assert encoded == {"off": 0, "lq": 0, "clean": 1, "clean_sampled": 1}


def test_color_fix_brings_the_cleaned_colours_back() -> None:
    """Control 0 gives a grey image; AdaIN has to return the cleaned image's channel means."""
    settings = dataclasses.replace(SETTINGS, control_scale=0.0)
    result = _restorer(sampler=settings, color_fix="adain")(_image() * 0.4 + 0.3)
    torch.testing.assert_close(
        result.restored.mean(dim=(1, 2)), result.cleaned.mean(dim=(1, 2)), atol=2e-3, rtol=0
    )


def test_tiled_equals_untiled_for_a_pointwise_network() -> None:
    image = _image(96, 160)
    tiled = _restorer()(image, sampler=dataclasses.replace(SETTINGS, tile=16, tile_batch=3))
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


def test_strength_goes_from_the_untouched_input_to_the_whole_restoration() -> None:
    image = _image(33, 47)
    restorer = _restorer()
    none, half, whole = (restorer(image, strength=s).restored for s in (0.0, 0.5, 1.0))
    assert torch.equal(none, image)
    torch.testing.assert_close(half, (image + whole) / 2)
    assert restorer(image, strength=0.0, scale=2.0).restored.shape == (3, 66, 94)


def test_strength_zero_asks_no_network() -> None:
    restorer = _restorer()
    restorer(_image(), strength=0.0)
    assert not restorer.network.sizes_seen and not restorer.conditioner.calls


def test_samples_differ_and_the_first_is_that_of_a_single_one() -> None:
    settings = dataclasses.replace(SETTINGS, sampler="heun", cfg_scale=1.0)
    restorer = _restorer(sampler=settings)
    starts: list[Tensor] = []

    def remember(step, x, denoised) -> None:
        if step.index == 0:
            starts.append(x)

    assert len(restorer(_image(), num_samples=3, on_step=remember).samples) == 3
    restorer(_image(), on_step=remember)
    assert torch.equal(starts[0], starts[3])
    assert not torch.allclose(starts[0], starts[1]) and not torch.allclose(starts[1], starts[2])


def test_long_side_keeps_the_aspect() -> None:
    assert _restorer()(_image(20, 30), long_side=60).restored.shape == (3, 40, 60)
    assert _restorer()(_image(40, 30), long_side=20).restored.shape == (3, 20, 15)


def test_color_of_the_input_or_of_the_cleaned_image() -> None:
    """Control 0 gives grey; the cleaned image is brighter than the input by construction."""
    settings = dataclasses.replace(SETTINGS, control_scale=0.0)
    restorer = _restorer(sampler=settings, color_fix="adain")
    decode = restorer.vae.decode
    restorer.vae.decode = lambda z: decode(z) + 0.2
    image = _image() * 0.4 + 0.3
    result = restorer(image, color_reference="input")
    means = result.restored.mean(dim=(1, 2))
    torch.testing.assert_close(means, image.mean(dim=(1, 2)), atol=2e-3, rtol=0)
    other = restorer(image, color_reference="cleaned").restored.mean(dim=(1, 2))
    torch.testing.assert_close(other, means + 0.1, atol=5e-3, rtol=0)


def test_sampled_center_draws_before_the_start_as_released() -> None:
    """The first normal numbers go to the posterior, so the sampler's start is the second draw."""
    shapes: list[Tensor] = []
    restorer = _restorer()
    encode = restorer.vae.encode
    restorer.vae.encode = lambda image, noise=None: (shapes.append(noise), encode(image))[1]
    settings = dataclasses.replace(SETTINGS, tau=4.0, center="clean_sampled")
    image = _image()
    restorer(image, sampler=settings)
    generator = torch.Generator().manual_seed(noise_seed(image[None], 0))
    assert torch.equal(shapes[0][0], torch.randn(shapes[0][0].shape, generator=generator))


def test_chunks_give_the_networks_all_tokens_on_both_sides() -> None:
    restorer = _restorer(
        positive_prompt=" ".join(["sharp"] * 40), negative_prompt="bad", prompt_mode="chunks"
    )
    seen: list[tuple[int, ...]] = []
    forward = restorer.network.forward
    restorer.network.forward = lambda x, t, cond, *a: (
        seen.append(tuple(cond.context.shape)) or forward(x, t, cond, *a)
    )
    restorer(_image(), caption=" ".join(["cat"] * 60))
    assert set(seen) == {(2, 154, 8)}
    texts = [call[0][0] for call in restorer.conditioner.calls]
    assert texts == [" ".join(["cat"] * 60), " ".join(["sharp"] * 40), "bad", ""]


def test_prompts_are_encoded_once() -> None:
    restorer = _restorer(size_condition=(64, 64))
    for seed in range(3):
        restorer(_image(), caption="a cat", seed=seed)
    assert len(restorer.conditioner.calls) == 2


def test_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="colour"):
        _restorer()(_image(), colour="red")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("robust_encoder", "the latent of the image"),
        ("vae", "the cleaned image"),
        ("network", "the sampled latent"),
    ],
)
def test_what_overflows_is_an_error_and_no_picture(part: str, what: str, value: float) -> None:
    restorer = _restorer()
    module = getattr(restorer, part)
    name = "decode" if part == "vae" else "forward"
    real = getattr(module, name)

    def spoilt(*args, **options) -> Tensor:
        out = real(*args, **options)
        out[..., 0, 0] = value
        return out

    setattr(module, name, spoilt)
    with pytest.raises(FloatingPointError, match=f"{what} holds NaN or infinity; use dtype="):
        restorer(_image())


def test_an_image_with_nan_is_refused_at_the_door() -> None:
    image = _image()
    image[0, 3, 5] = float("nan")
    for strength in (0.0, 1.0):
        with pytest.raises(ValueError, match="the image holds NaN or infinity"):
            _restorer(strength=strength)(image)


def test_a_preview_decodes_wherever_the_call_keeps_the_vae() -> None:
    """A call may keep it elsewhere than the restorer's own options do."""
    seen: list[str] = []

    class Vae(StandInVae):
        def decode(self, z: Tensor) -> Tensor:
            seen.append(self.post_quant_conv.weight.device.type)
            assert z.device.type == seen[-1]
            return torch.zeros(1, 3, 8, 8)

    restorer = _restorer()
    restorer.vae, restorer.device = Vae(), torch.device("meta")  # type: ignore[assignment]
    for kept in ("cpu", "meta"):
        weight = restorer.vae.to(kept).post_quant_conv.weight
        assert restorer.preview(torch.zeros(1, 4, 2, 2)).shape == (3, 8, 8)
        assert restorer.vae.post_quant_conv.weight is weight and weight.device.type == kept
    assert seen == ["meta", "meta"]


def test_a_stage_ends_when_the_device_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read before the work is queued, and again only once it is done."""
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("synchronize"))
    clock = iter((1.0, 3.5, 10.0, 11.0))
    monkeypatch.setattr(result.time, "perf_counter", lambda: order.append("clock") or next(clock))
    call = result.Call(_image(), None, None, None, {})
    for _ in range(2):
        with call.timed("sample"):
            order.append("work")
    assert order == ["clock", "work", "synchronize", "clock"] * 2
    assert call.seconds == {"sample": 3.5}
