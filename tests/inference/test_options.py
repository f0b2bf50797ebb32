"""Options: ranges, sizes, and the presets and configuration that fill them."""

import dataclasses
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from open_supir.diffusion import SamplerSettings
from open_supir.inference import RestoreOptions
from open_supir.inference.prompts import NEGATIVE_PROMPT, POSITIVE_PROMPT
from tests.test_configs import CONF

PRESETS = ("paper", "released", "quality", "fidelity", "fast", "lightning", "lcm")
LINEAR = dict(num_steps=50, s_churn=5.0, tau=None, control_scale=1.0)
# The released command line, its README's presets, its Lightning file, the paper; the model cards of
# the SDXL-Lightning and LCM LoRAs
NUMBERS: dict[str, dict[str, Any]] = {
    "released": LINEAR | dict(cfg_scale=4.0, cfg_scale_start=1.0, s_noise=1.01, sampler="euler",
                              grid="table", churn_beyond_table=True, control_scale_start=None),
    "quality": LINEAR | dict(cfg_scale=6.0, cfg_scale_start=3.0, s_noise=1.02, control_scale=0.93),
    "fidelity": LINEAR | dict(cfg_scale=4.0, cfg_scale_start=1.0, s_noise=1.01, tau=4.0),
    "fast": dict(num_steps=8, sampler="dpmpp_2m", grid="karras", cfg_scale=2.0, eta=1.0, tau=None),
    "paper": dict(num_steps=100, cfg_scale=7.5, cfg_scale_start=None, tau=4.0, center="lq"),
    "lightning": dict(num_steps=8, sampler="euler", grid="table", cfg_scale=1.0, s_churn=0.0),
    "lcm": dict(num_steps=4, sampler="lcm", grid="lcm", cfg_scale=1.0, s_noise=1.0),
}  # fmt: skip


def _composed(*overrides: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("restore", overrides=["input=x", "output=y", *overrides])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_numbers(name: str) -> None:
    settings: SamplerSettings = instantiate(_composed(f"preset={name}").sampler, _convert_="all")
    for key, value in NUMBERS[name].items():
        assert getattr(settings, key) == value, key


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_valid_options_and_can_be_overridden(name: str) -> None:
    cfg = _composed(f"preset={name}", "options.seed=7", "sampler.num_steps=3")
    given = {k: v for k, v in OmegaConf.to_container(cfg.options).items() if v is not None}
    options = RestoreOptions(sampler=instantiate(cfg.sampler, _convert_="all"), **given)
    assert options.seed == 7 and options.sampler.num_steps == 3
    if name == "released":
        assert options.min_size == 1024 and options.size_condition == (1024, 1024)
        assert options.positive_prompt == POSITIVE_PROMPT
        assert options.negative_prompt == NEGATIVE_PROMPT


def test_configuration_lists_every_option_with_its_own_default() -> None:
    given: Any = OmegaConf.to_container(_composed().options)
    names = {field.name for field in dataclasses.fields(RestoreOptions)}
    assert set(given) == names - {"sampler"}
    own = RestoreOptions()
    for name, value in given.items():
        assert value is None or value == getattr(own, name), name


@pytest.mark.parametrize(
    "options",
    [
        dict(strength=1.1), dict(strength=-0.1), dict(num_samples=0), dict(num_samples=65),
        dict(scale=0.0), dict(scale=100.0), dict(min_size=-1), dict(long_side=0), dict(quality=0),
        dict(color_fix="hsv"), dict(color_reference="hq"), dict(prompt_mode="cut"),
        dict(format="bmp"), dict(bits=12), dict(format="jpg", bits=16), dict(vae_tile=8),
        dict(seed=-1), dict(scale=2.0, long_side=10), dict(scale="double"),
        dict(vae_tile_norms="guessed"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match="|".join(options)):
        RestoreOptions(**options)


@pytest.mark.parametrize(
    "options, size, output, working",
    [
        (dict(), (90, 130), (90, 130), (90, 130)),
        (dict(scale=2), (90, 130), (180, 260), (180, 260)),
        (dict(min_size=128), (90, 130), (90, 130), (128, 185)),  # 130 * 128 / 90 = 184.9
        (dict(long_side=65), (90, 130), (45, 65), (45, 65)),
        (dict(min_size="native", size_condition=(64, 64)), (30, 60), (30, 60), (64, 128)),
        (dict(min_size="native"), (30, 60), (30, 60), (30, 60)),
        (dict(scale=0.5), (1, 1), (1, 1), (1, 1)),
        (dict(min_size=64), (1, 20000), (1, 20000), (1, 20000)),  # not 64 x 1280000
    ],
)
def test_sizes_by_hand(options: dict, size: Any, output: Any, working: Any) -> None:
    made = RestoreOptions(**options)
    assert (made.output_size(*size), made.working_size(*size)) == (output, working)


def test_described_options_make_the_same_again() -> None:
    options = RestoreOptions(size_condition=(64, 64), sampler=SamplerSettings(num_steps=3))
    described = options.described()
    settings = SamplerSettings(**described.pop("settings"))
    assert RestoreOptions(sampler=settings, **described) == options
    assert dataclasses.replace(options, seed=1) != options
