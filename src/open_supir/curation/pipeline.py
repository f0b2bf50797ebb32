"""The pipeline: the units of each step, what is left to do, and what failed."""

import heapq
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_supir.base.files import remove_leftovers
from open_supir.base.folders import walk
from open_supir.curation.card import write_card
from open_supir.curation.dedup import DedupStep
from open_supir.curation.outcome import say_outcome, write_image_list
from open_supir.curation.runners import LocalRunner, Runner
from open_supir.curation.selection import SelectStep, kept_rows
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.sources import LISTING, InputSettings, list_units, listing_id
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep, ScoreStep
from open_supir.curation.thresholds import MEASURES, Thresholds
from open_supir.curation.work import (
    DONE,
    CurationStep,
    Unit,
    alone,
    digest,
    digest_all,
    is_done,
    read_done,
    unit_folder,
    unit_key,
)
from open_supir.curation.write_shards import (
    ShardStep,
    claim,
    finish_shards,
    missing_tars,
    shard_units,
)

log = logging.getLogger(__name__)

STEPS = ("filter", "score", "dedup", "select", "caption", "negatives", "shards")
HERE = LocalRunner(num_workers=0)
LOG_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Settings of all steps; None skips a step.

    `rescan` looks for new and changed inputs, `retry_failed` retries failed captions,
    `num_negatives` is the number of negative samples, `prefix` replaces the positives' shard names.
    """

    input: InputSettings
    filter: FilterStep
    score: ScoreStep | None
    dedup: DedupStep | None
    thresholds: Thresholds
    caption: CaptionStep
    negatives: NegativeStep | None
    num_negatives: int
    positives: ShardLayoutStep
    negative_shards: ShardLayoutStep
    output: str
    shards_dir: str
    rescan: bool = False
    retry_failed: bool = False
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.num_negatives < 0:
            raise ValueError(f"negatives.count must be at least 0, got {self.num_negatives}")
        if self.num_negatives and self.positives.source == self.negative_shards.source:
            raise ValueError(
                "shards.source and negatives.source must differ, since each names a folder; got "
                f"{self.positives.source!r} twice"
            )


class UnitsFailed(RuntimeError):
    """Some units failed; the others are done."""


class Pipeline:
    """Runs steps over an output folder: `work/` holds the units, `report/` the filter's page."""

    def __init__(self, settings: PipelineSettings, runner: Runner) -> None:
        known = [*MEASURES, *(settings.score.metrics if settings.score else ())]
        settings.thresholds.check(known)
        self.settings, self.runner = settings, runner
        self.output = Path(settings.output)
        self.root = self.output / "work"
        self.select = SelectStep(thresholds=settings.thresholds)
        self.failed: dict[tuple[str, str], str] = {}

    def run(self, steps: Sequence[str]) -> str:
        """Run steps in pipeline order; return what came out in words, "" before the selection.

        Raises:
            UnitsFailed: Some units failed on every attempt; raised after the last step, lists them.
            FileNotFoundError: An earlier step has not been run.
            ValueError: Another run uses this output, or its shards come from other inputs.
        """
        with alone(self.root):
            self._sweep()
            self.listed = list_units(self.settings.input, self.root, rescan=self.settings.rescan)
            for name in STEPS:
                if name in steps:
                    getattr(self, f"_run_{name}")()
        if self.failed:
            raise UnitsFailed(
                f"{len(self.failed)} units failed; rerun the same command to retry:\n"
                + "\n".join(self.failed.values())
            )
        if not {"select", "shards"} & set(steps):
            return ""
        return say_outcome(self.settings, self.root, [done for _, done in self._filtered()])

    def _sweep(self) -> None:
        """Delete files that a killed run was writing."""
        shards = Path(self.settings.shards_dir)
        sources = (self.settings.positives.source, self.settings.negative_shards.source)
        for folder in (self.root / LISTING, self.output / "report", *map(shards.joinpath, sources)):
            remove_leftovers(folder)

    def _run_filter(self) -> None:
        self._do(self.settings.filter, self.listed)

    def _run_score(self) -> None:
        if self.settings.score is not None:
            self._do(self.settings.score, self._score_units())

    def _score_units(self) -> list[Unit]:
        bounds = self.settings.thresholds.only(MEASURES).plain()["bounds"]
        return [
            Unit(
                name,
                digest(done["result"], bounds),
                self._inputs(done) | {"bounds": bounds, "filter": done["result"]},
            )
            for name, done in self._filtered()
        ]

    def _run_dedup(self) -> None:
        if self.settings.dedup is not None:
            self._do(self.settings.dedup, [self._dedup_unit(self.settings.dedup)], here=True)

    def _dedup_unit(self, step: DedupStep) -> Unit:
        files = [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for folder in step.against
            for place, names in walk(_folder(folder), lambda path, reason: None)
            for path in (place / name for name in names)
            if path.is_file()
        ]
        bounds = {"bounds": self.settings.thresholds.plain()["bounds"]}
        return self._everything({"thresholds": bounds, "against": files})

    def _run_select(self) -> None:
        unit = self._select_unit()
        self._do(self.select, [unit], here=True)
        ((_, selected),) = self._ready(self.select, [unit])
        report = self.output / "report" / "index.html"
        if not _shows(report, selected["result"]):  # also where a run was killed in between
            from open_supir.curation.filter_report import write_filter_report  # loads torch

            metrics = self.settings.score.metrics if self.settings.score else ()
            names = [name for name, _ in self._filtered()]
            write_image_list(report.with_name("images.csv"), self.root, names, metrics)
            write_filter_report(report, self.root, self.settings.thresholds)
            log.info("report: %s", report)

    def _select_unit(self) -> Unit:
        dedup = self.settings.dedup
        if dedup is None:
            return self._everything({"dedup": None})
        ((_, done),) = self._ready(dedup, [self._dedup_unit(dedup)])
        return self._everything({"dedup": done["result"]})

    def _run_caption(self) -> None:
        units = self._caption_units()
        if self.settings.retry_failed:
            for unit in units:
                folder = unit_folder(self.root, "caption", unit.name)
                done = read_done(folder)
                if done is not None and done["statistics"]["failed"]:
                    (folder / DONE).unlink()
        self._do(self.settings.caption, units)
        failed = sum(done["statistics"]["failed"] for _, done in self._captioned())
        if failed:
            log.warning(
                "caption: %d images are left out because captioning failed; see work/caption for "
                "reasons; retry_failed=true tries again", failed
            )  # fmt: skip

    def _caption_units(self) -> list[Unit]:
        ((_, selected),) = self._ready(self.select, [self._select_unit()])
        kept = selected["statistics"]["units"]
        return [
            Unit(name, digest(done["result"], kept[name][1]), self._inputs(done))
            for name, done in self._filtered()
            if name in kept and kept[name][0]
        ]

    def _captioned(self) -> list[tuple[str, dict[str, Any]]]:
        return self._ready(self.settings.caption, self._caption_units())

    def _run_negatives(self) -> None:
        step = self.settings.negatives
        if step is not None and self.settings.num_negatives:
            self._do(step, self._negative_units(step))

    def _negative_units(self, step: NegativeStep) -> list[Unit]:
        """Pick the positives with the lowest hashes, so that a larger number is a superset."""
        captioned, filtered = dict(self._captioned()), dict(self._filtered())
        ranked = (
            (digest("negative", step.seed, row["key"]), row["key"], name)
            for name in captioned
            for row in kept_rows(self.root, name)
        )
        chosen: dict[str, list[str]] = {}
        for _, key, name in heapq.nsmallest(self.settings.num_negatives, ranked):
            chosen.setdefault(name, []).append(key)
        units = []
        for name, keys in sorted(chosen.items()):
            content = digest(filtered[name]["result"], captioned[name]["result"], sorted(keys))
            units.append(Unit(name, content, self._inputs(filtered[name]) | {"keys": keys}))
        return units

    def _run_shards(self) -> None:
        settings = self.settings
        sources = [(settings.positives, self._captioned(), settings.prefix)]
        if settings.negatives is not None and settings.num_negatives:
            made = self._ready(settings.negatives, self._negative_units(settings.negatives))
            sources.append((settings.negative_shards, made, None))
        entries = {}
        for layout, _, _ in sources:
            claim(Path(settings.shards_dir) / layout.source, listing_id(self.root))
        for layout, origin, prefix in sources:
            content = digest([done["result"] for _, done in origin])
            inputs = {"root": str(self.root), "units": [name for name, _ in origin]}
            self._do(layout, [Unit("all", content, inputs)], here=True)
            writer = ShardStep(layout=layout, output=settings.shards_dir)
            units = shard_units(layout, self.root, prefix=prefix)
            for unit in missing_tars(writer, units, self.root):
                (unit_folder(self.root, writer.name, unit.name) / DONE).unlink()
            self._do(writer, units)
            if not any(step == writer.name for step, _ in self.failed):
                entries[layout.source] = finish_shards(writer, units, self.root)
        if entries.get(settings.positives.source):
            folder = Path(settings.shards_dir) / settings.positives.source
            write_card(
                folder, self.root, settings, entries,
                filtered=self._filtered(), captioned=self._captioned(),
            )  # fmt: skip

    def _filtered(self) -> list[tuple[str, dict[str, Any]]]:
        return self._ready(self.settings.filter, self.listed)

    def _ready(self, step: CurationStep, units: Sequence[Unit]) -> list[tuple[str, dict[str, Any]]]:
        """Return the `done.json` of every unit, except those that failed in this run.

        Raises:
            FileNotFoundError: A unit has not been tried, or was made from other inputs or settings.
        """
        ready = []
        for unit in units:
            done = read_done(unit_folder(self.root, step.name, unit.name))
            if done is not None and done["key"] == unit_key(step, unit):
                ready.append((unit.name, done))
            elif (step.name, unit.name) not in self.failed:
                raise FileNotFoundError(
                    f"step {step.name} is not done for unit {unit.name}, or was done with other "
                    f"settings: run step={step.name} first"
                )
        return ready

    def _everything(self, extra: dict[str, Any]) -> Unit:
        """Return the unit of a step that needs all filtered rows and their scores."""
        ready = self._filtered()
        content = [done["result"] for _, done in ready]
        if self.settings.score is not None:
            ready = self._ready(self.settings.score, self._score_units())
            content += [done["result"] for _, done in ready]
        inputs = {"root": str(self.root), "units": [name for name, _ in ready], **extra}
        return Unit("all", digest(digest_all(content), extra), inputs)

    def _inputs(self, done: dict[str, Any]) -> dict[str, Any]:
        return {"root": str(self.root), "shard": done["statistics"]["shard"]}

    def _do(self, step: CurationStep, units: Sequence[Unit], *, here: bool = False) -> None:
        """Do the remaining units of a step."""
        left = [unit for unit in units if not is_done(self.root, step, unit)]
        if not left:
            log.info("%s: %d units, all done", step.name, len(units))
            return
        log.info("%s: %d of %d units to do", step.name, len(left), len(units))
        start = shown = time.monotonic()
        runner = HERE if here else self.runner
        for number, outcome in enumerate(runner.run(step, left, self.root), start=1):
            if outcome.error is not None:
                line = f"{step.name}/{outcome.unit}: {outcome.error}"
                self.failed[step.name, outcome.unit] = line
                log.error("%s, after %d attempts", line, outcome.attempts)
                if here:  # the step's only unit, which all later steps need
                    raise UnitsFailed(line)
            if time.monotonic() - shown > LOG_SECONDS:
                shown = time.monotonic()
                rate = number / (shown - start)
                log.info("%s: %d of %d units, %.0f s left", step.name, number, len(left),
                         (len(left) - number) / rate)  # fmt: skip
        log.info("%s: done in %.1f s", step.name, time.monotonic() - start)


def _shows(report: Path, result: str) -> bool:
    """Return whether a report shows the selection with this result."""
    try:
        with open(report, encoding="utf-8") as file:
            return result in file.readline(400)
    except (OSError, UnicodeDecodeError):
        return False


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"dedup.against: no such folder: {folder}")
    return folder
