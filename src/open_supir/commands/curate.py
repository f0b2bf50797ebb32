"""Build a training set from photographs: input=FOLDER output=FOLDER.

Filters, scores, deduplicates and captions them, makes negative samples and writes shards. Continues
where it was stopped and repeats no finished work. `step=NAME` runs one step.
"""

import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command
from open_supir.curation.dedup import DedupStep
from open_supir.curation.pipeline import STEPS, Pipeline, PipelineSettings, UnitsFailed
from open_supir.curation.runners import OpenError
from open_supir.curation.sources import InputSettings, name_inputs
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep, ScoreStep
from open_supir.curation.thresholds import Thresholds
from open_supir.curation.work import Recipe
from open_supir.curation.write_shards import ShardPlanStep

log = logging.getLogger(__name__)


@command("curate")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit with status 1 if units failed."""
    try:
        curate(cfg)
    except (UnitsFailed, OpenError, ImportError) as error:
        raise ValueError(str(error)) from error


def curate(cfg: DictConfig) -> None:
    """Run the configured steps."""
    settings = settings_of(cfg)
    runner = instantiate(cfg.runner, _convert_="all")
    Pipeline(settings, runner).run(steps_of(cfg.step))


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


def settings_of(cfg: DictConfig) -> PipelineSettings:
    """Build the pipeline settings from a configuration; loads no networks.

    Raises:
        ValueError: A value is out of range or has the wrong type.
    """
    try:
        return _settings_of(cfg)
    except TypeError as error:  # a word instead of a number
        raise ValueError(f"a setting has the wrong type: {error}") from error


def _settings_of(cfg: DictConfig) -> PipelineSettings:
    paths = name_inputs(_plain(cfg.input))
    for name in ("output", "shards_dir"):  # workers may have another working directory
        cfg[name] = os.path.abspath(Path(cfg[name]).expanduser())
    filter_step = FilterStep(**_plain(cfg.filter))
    return PipelineSettings(
        input=InputSettings(
            paths=paths,
            licences=_licences(_plain(cfg.licence), paths),
            unit_size=cfg.unit_size,
            exclude=(f"{cfg.output}/work", f"{cfg.output}/report", cfg.shards_dir),
        ),
        filter=filter_step,
        score=_score(cfg.score),
        dedup=_dedup(cfg.dedup, filter_step),
        thresholds=_thresholds(cfg.thresholds),
        caption=_caption(cfg),
        negatives=_negatives(cfg.negatives) if cfg.negatives.count else None,
        num_negatives=cfg.negatives.count,
        positives=ShardPlanStep(origin="filter", **_plain(cfg.shards)),
        negative_shards=ShardPlanStep(
            origin="negatives", **{**_plain(cfg.shards), "source": cfg.negatives.source}
        ),
        output=str(cfg.output),
        shards_dir=str(cfg.shards_dir),
        rescan=cfg.rescan,
        retry_failed=cfg.retry_failed,
        prefix=cfg.prefix,
    )


def _licences(licence: Any, sources: Iterable[str]) -> dict[str, str]:
    """Return source name -> licence, given one licence for all or one each."""
    if licence is None or licence == "":
        return {}
    if isinstance(licence, list):
        raise ValueError(f"licence must be one licence or {{source: licence}}, got {licence}")
    each = licence if isinstance(licence, dict) else dict.fromkeys(sources, licence)
    return {name: str(value) for name, value in each.items() if value is not None}


def recipe(node: DictConfig, **more: Any) -> Recipe:
    """Return what builds the object of a config node in a worker, when that needs it."""
    about = {**_plain(node), **more}
    return Recipe(about, partial(instantiate, about, _convert_="all"))


def _score(node: DictConfig) -> ScoreStep | None:
    metrics = _several(node.metrics, "score.metrics")
    scorer = recipe(node.scorer, metrics=list(metrics))
    return ScoreStep(metrics=metrics, scorer=scorer) if metrics else None


def _dedup(node: DictConfig, filter_step: FilterStep) -> DedupStep | None:
    values = _plain(node)
    if not values.pop("enabled"):
        return None
    against = _several(values.pop("against"), "dedup.against")
    return DedupStep(fit=filter_step, against=against, **values)


def _thresholds(node: DictConfig) -> Thresholds:
    values = _plain(node)
    bounds = {name: bound for name, bound in values["bounds"].items() if bound is not None}
    return Thresholds(bounds=bounds, top=values["top"])


def _caption(cfg: DictConfig) -> CaptionStep:
    values = _plain(cfg.caption)
    question = values.pop("question")
    captioner = None
    if not cfg.captioner._target_.endswith("NoCaptioner"):
        asked = {"question": question} if question else {}
        captioner = recipe(cfg.captioner, **asked)
    return CaptionStep(captioner=captioner, **values)


def _negatives(node: DictConfig) -> NegativeStep:
    values = _plain(node)
    for name in ("count", "source", "prior"):
        values.pop(name)
    return NegativeStep(prior=recipe(node.prior), **values)


def _several(value: Any, key: str) -> tuple[str, ...]:
    """Return the names in a list; a single name counts as a list of one."""
    values = () if value is None else (value,) if isinstance(value, str) else tuple(_plain(value))
    if not all(isinstance(one, str) and one for one in values):
        raise ValueError(f"{key} must be names, got {values}")
    return values


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


if __name__ == "__main__":
    main()
