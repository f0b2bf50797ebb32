"""From the plain values of a configuration (conf/curate.yaml) to the settings of the pipeline."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from open_supir.curation.dedup import DedupStep
from open_supir.curation.pipeline import STEPS, PipelineSettings
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.sources import InputSettings, name_inputs
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep, ScoreStep
from open_supir.curation.thresholds import Thresholds
from open_supir.curation.work import Blueprint

Values = Mapping[str, Any]
Build = Callable[[Values], Any]


def steps_of(name: Any) -> tuple[str, ...]:
    """Return the steps for a name or a list of names.

    Raises:
        ValueError: There is no such step.
    """
    names = STEPS if name == "all" else _several(name, "step")
    for one in names:
        if one not in STEPS:
            raise ValueError(f"unknown step {one!r}; known: all, {', '.join(STEPS)}")
    if not names:
        raise ValueError(f"step is empty; known: all, {', '.join(STEPS)}")
    return names


def settings_of(values: Values, build: Build) -> PipelineSettings:
    """Build the pipeline settings from a configuration; loads no networks.

    Args:
        values: The values of conf/curate.yaml; `output` and `shards_dir` are absolute, because
            workers may run in other folders.
        build: Builds the object that a node with `_target_` describes; called in workers.

    Raises:
        ValueError: A value is out of range or has the wrong type.
    """
    try:
        return _settings_of(values, build)
    except TypeError as error:  # a word instead of a number
        raise ValueError(f"a setting has the wrong type: {error}") from error


def _settings_of(values: Values, build: Build) -> PipelineSettings:
    paths = name_inputs(values["input"])
    output, shards_dir = values["output"], values["shards_dir"]
    filter_step = FilterStep(**values["filter"])
    negatives, shards = values["negatives"], values["shards"]
    return PipelineSettings(
        input=InputSettings(
            paths=paths,
            licences=_licences(values["licence"], paths),
            unit_size=values["unit_size"],
            exclude=(f"{output}/work", f"{output}/report", shards_dir),
        ),
        filter=filter_step,
        score=_score(values["score"], build),
        dedup=_dedup(values["dedup"], filter_step),
        thresholds=_thresholds(values["thresholds"]),
        caption=_caption(values, build),
        negatives=_negatives(negatives, build) if negatives["count"] else None,
        num_negatives=negatives["count"],
        positives=ShardLayoutStep(origin="filter", **shards),
        negative_shards=ShardLayoutStep(
            origin="negatives", **{**shards, "source": negatives["source"]}
        ),
        output=output,
        shards_dir=shards_dir,
        rescan=values["rescan"],
        retry_failed=values["retry_failed"],
        prefix=values["prefix"],
    )


def _licences(licence: Any, sources: Iterable[str]) -> dict[str, str]:
    """Return source name -> licence, given one licence for all or one each."""
    if licence is None or licence == "":
        return {}
    if isinstance(licence, list):
        raise ValueError(f"licence must be one licence or {{source: licence}}, got {licence}")
    each = licence if isinstance(licence, dict) else dict.fromkeys(sources, licence)
    return {name: str(value) for name, value in each.items() if value is not None}


def _blueprint(about: Values, build: Build) -> Blueprint:
    return Blueprint(about, partial(build, about))


def _score(values: Values, build: Build) -> ScoreStep | None:
    metrics = _several(values["metrics"], "score.metrics")
    scorer = _blueprint({**values["scorer"], "metrics": list(metrics)}, build)
    return ScoreStep(metrics=metrics, scorer=scorer) if metrics else None


def _dedup(values: Values, filter_step: FilterStep) -> DedupStep | None:
    values = dict(values)
    if not values.pop("enabled"):
        return None
    against = _several(values.pop("against"), "dedup.against")
    return DedupStep(fit=filter_step, against=against, **values)


def _thresholds(values: Values) -> Thresholds:
    bounds = {name: bound for name, bound in values["bounds"].items() if bound is not None}
    return Thresholds(bounds=bounds, top=values["top"])


def _caption(values: Values, build: Build) -> CaptionStep:
    about, asked = values["captioner"], dict(values["caption"])
    question = asked.pop("question")
    captioner = None
    if not about["_target_"].endswith("NoCaptioner"):
        captioner = _blueprint({**about, "question": question} if question else about, build)
    return CaptionStep(captioner=captioner, **asked)


def _negatives(values: Values, build: Build) -> NegativeStep:
    own = {name: values[name] for name in values if name not in ("count", "source", "prior")}
    return NegativeStep(prior=_blueprint(values["prior"], build), **own)


def _several(value: Any, key: str) -> tuple[str, ...]:
    """Return the names in a list; a single name counts as a list of one."""
    values = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(one, str) and one for one in values):
        raise ValueError(f"{key} must be names, got {values}")
    return values
