"""The command's configuration, and the demo's shards through the pipeline."""

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from open_supir.commands.curate import BUILD, curate, plain
from open_supir.curation.configured import settings_of, steps_of
from open_supir.curation.pipeline import STEPS, PipelineSettings
from open_supir.data.demo import write_demo_shards
from tests.test_configs import CONF


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("curate", overrides=list(overrides))


def configured(cfg: DictConfig) -> PipelineSettings:
    return settings_of(plain(cfg), BUILD)


def test_demo_shards_come_out_of_the_pipeline_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trains by default does not change by going through filter, selection and shards."""
    candidates = tmp_path / "work/candidates"
    write_demo_shards(candidates, photos=0.05, dead_leaves=6, negatives=8, shard_size=16)
    monkeypatch.chdir(tmp_path)
    for source in ("photos", "dead_leaves", "negative"):
        curate(composed("set=demo", f"shards.source={source}", f"work={tmp_path / 'work'}",
                        "shards.shard_size=16"))  # fmt: skip
        before = {p.name: p.read_bytes() for p in (candidates / source).iterdir()}
        made = {p.name: p.read_bytes() for p in (tmp_path / "work/demo" / source).iterdir()}
        assert set(made) - set(before) == {"CARD.md", "card.json", ".made-from"}
        assert {name: made[name] for name in before} == before
    shutil.rmtree(tmp_path / "work")


def test_steps_by_name() -> None:
    assert steps_of("all") == STEPS and steps_of("dedup") == ("dedup",)
    assert steps_of(["filter", "select"]) == ("filter", "select")
    with pytest.raises(ValueError, match="unknown step 'captions'; known: all, filter"):
        steps_of("captions")
    with pytest.raises(ValueError, match="step is empty"):
        steps_of([])


def test_question_reaches_the_captioner_and_its_key() -> None:
    captioner = ["captioner=server", "captioner.url=http://localhost:1/v1", "captioner.model=m"]
    base = ["input=a", "output=b", *captioner]
    plain, asked = (
        configured(composed(*base, *more)).caption for more in ([], ["caption.question='Why?'"])
    )
    assert plain.settings() != asked.settings()
    assert asked.captioner is not None and asked.captioner.build().question == "Why?"


def test_inputs_licences_and_left_out_steps() -> None:
    cfg = composed("input={one: x, two: y}", "output=o", "licence={one: CC0}")
    settings = configured(cfg)
    assert settings.input.paths == {"one": "x", "two": "y"}
    assert settings.input.licences == {"one": "CC0"}
    assert settings.score is None and settings.negatives is None and settings.dedup is not None
    assert configured(composed("input=x", "output=o", "dedup.enabled=false")).dedup is None


def test_null_takes_a_threshold_away() -> None:
    settings = configured(composed("input=x", "output=o", "thresholds.bounds.sharpness=null"))
    assert "sharpness" not in settings.thresholds.bounds and "aspect" in settings.thresholds.bounds


@pytest.mark.parametrize("runner", ["local", "ray", "slurm"])
def test_every_runner_can_be_built_without_its_library(runner: str) -> None:
    from hydra.utils import instantiate

    cfg = composed("input=x", "output=o", f"runner={runner}", "ray.address=auto")
    made = instantiate(cfg.runner, _convert_="all")
    assert getattr(made, "address", "auto") == "auto"


def test_full_size_prior_composes() -> None:
    cfg = composed("input=x", "output=o", "prior=sdxl", "prior.path=f", "negatives.count=9")
    step = configured(cfg).negatives
    assert step is not None
    assert step.prior.about["unet"]["model_channels"] == 320
    assert step.prior.about["settings"]["num_steps"] == 50 and step.strength == 0.5


def test_a_name_alone_is_a_list_of_one() -> None:
    one = ["score.metrics=musiq", "dedup.against=/eval", "licence=4"]
    settings = configured(composed("input=x", "output=o", *one))
    assert settings.score is not None and settings.score.metrics == ("musiq",)
    assert settings.score.scorer.about["metrics"] == ["musiq"]
    assert settings.dedup is not None and settings.dedup.against == ("/eval",)
    assert settings.input.licences == {"x": "4"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("licence=[CC0]", "one licence or"),
        ("negatives.count=-1", "negatives.count must be at least 0, got -1"),
        ("negatives.count=1 negatives.source=positive", "'positive' twice"),
        ("shards.shard_size=0", "shard_size >= 1"),
        ("shards.source=a/b", "got 1000 and 'a/b'"),
        ("dedup.against=[1]", "dedup.against must be names"),
        ("dedup.max_distance=x", "wrong type"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_done(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configured(composed("input=x", "output=o", *override.split()))
