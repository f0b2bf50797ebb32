"""Ranges are checked where they enter; every preset builds."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from open_supir.degradation import BlurConfig, DegradationConfig, DegradationPipeline, StageConfig

from .samples import PRESETS, ROOT, composed, config

EXPECTED = {
    "supir_q",
    "supir_q_x2",
    "tiny",
    "supir_f",
    "realesrgan_x4",
    "second_stage_half",
    "bicubic",
    "x4",
    "x8",
    "blur2_x4",
    "x4_noise40",
    "blur2_x4_noise20_jpeg50",
}

FIXED = {name for name in EXPECTED if "x4" in name or "x8" in name or name == "bicubic"}
FIXED -= {"realesrgan_x4"}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (BlurConfig, {"families": [0.5, 0.2, 0, 0, 0, 0]}),
        (BlurConfig, {"families": [1.0, 0.0]}),
        (BlurConfig, {"sigma": (3.0, 0.2)}),
        (BlurConfig, {"sigma": (0.0, 1.0)}),
        (BlurConfig, {"sizes": (7, 22)}),
        (BlurConfig, {"sizes": (7, 23)}),
        (BlurConfig, {"beta_generalized": (2.0, 4.0)}),
        (BlurConfig, {"prob": 1.2}),
        (StageConfig, {"resize_prob": (0.2, 0.7, 0.2)}),
        (StageConfig, {"modes": ("lanczos",)}),
        (StageConfig, {"modes": ()}),
        (StageConfig, {"jpeg": (0.0, 50.0)}),
        (StageConfig, {"up": (0.5, 1.5)}),
        (StageConfig, {"sigma": (5.0, 1.0)}),
        (DegradationConfig, {"scale": 0.5}),
        (DegradationConfig, {"resize_back": "nearest"}),
        (DegradationConfig, {"jpeg": "webp"}),
        (DegradationConfig, {"align": "corners"}),
        (DegradationConfig, {"poisson_floor": 0}),
        (DegradationConfig, {"sinc_sizes": (8, 21)}),
    ],
)
def test_config_refuses_impossible_values_and_names_them(kind: type, wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        kind(**wrong)


def test_pipeline_refuses_unknown_path() -> None:
    with pytest.raises(ValueError, match="path"):
        DegradationPipeline(DegradationConfig(), path="gpu")  # type: ignore[arg-type]


def test_pipeline_refuses_unknown_compilers_and_names_the_known() -> None:
    with pytest.raises(ValueError, match="'fast'.*inductor"):
        DegradationPipeline(DegradationConfig(), compile="fast")


def test_config_can_be_hashed_when_given_lists() -> None:
    """The canvas path caches its shapes by config."""
    given = StageConfig(modes=["area"], jpeg=[30, 40])  # type: ignore[arg-type]
    assert hash(given) == hash(StageConfig(modes=("area",), jpeg=(30, 40)))


def test_presets_are_complete() -> None:
    assert set(PRESETS) == EXPECTED


@pytest.mark.parametrize("name", PRESETS)
def test_preset_composes_as_a_group_and_instantiates(name: str, tmp_path) -> None:
    (tmp_path / "degradation").symlink_to(ROOT / "conf/degradation")
    (tmp_path / "main.yaml").write_text("defaults:\n  - degradation: supir_q\n  - _self_\n")
    with initialize_config_dir(str(tmp_path), version_base=None):
        cfg = compose("main", overrides=[f"degradation={name}"])
    pipeline = instantiate(cfg.degradation)
    assert isinstance(pipeline, DegradationPipeline)
    assert isinstance(pipeline.config.modes, tuple)


def all_keys(node: object) -> set[str]:
    """Dotted names of a dataclass's fields, nested ones too."""
    assert dataclasses.is_dataclass(node)
    keys = set()
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        inner = all_keys(value) if dataclasses.is_dataclass(value) else set()
        keys |= {field.name} | {f"{field.name}.{name}" for name in inner}
    return keys


@pytest.mark.parametrize("name", PRESETS)
def test_every_key_can_be_overridden(name: str) -> None:
    """Hydra refuses keys that a file leaves out; fixed presets list what they use of a stage."""
    written = composed(name)
    assert {"path", "compile"} <= set(written)
    keys = all_keys(config(name))
    if name in FIXED:
        keys = {key for key in keys if "." not in key}
    missing = [key for key in keys if OmegaConf.select(written.config, key, default="-") == "-"]
    assert not missing


def test_light_ranges_lie_within_the_standard_ones() -> None:
    """Second JPEG excepted: its upper end is 100 in the published light settings."""
    light, standard = config("supir_f"), config("supir_q")
    for stage in ("first", "second"):
        a, b = getattr(light, stage), getattr(standard, stage)
        for name in ("up", "down", "sigma", "poisson"):
            assert getattr(b, name)[0] <= getattr(a, name)[0]
            assert getattr(a, name)[1] <= getattr(b, name)[1]
        assert a.jpeg[0] > b.jpeg[0]
    assert light.second.blur.prob < standard.second.blur.prob


def test_preset_of_the_tiny_scale_is_the_standard_one_but_for_the_scale() -> None:
    assert config("supir_q_x2") == dataclasses.replace(config("supir_q"), scale=2)


def test_realesrgan_preset_keeps_the_reference_semantics() -> None:
    reference, ours = config("realesrgan_x4"), config("supir_q")
    assert reference.jpeg == "diffjpeg" and reference.align == "scale_factor"
    assert reference.poisson_floor == 1 and reference.resize_back is None
    same = dataclasses.replace(
        reference, jpeg="libjpeg", align="size", poisson_floor=64, resize_back="bicubic"
    )
    assert same == ours
