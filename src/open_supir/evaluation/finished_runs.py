"""Finished training runs: find, read and label their run folders, and list what differs.

A run folder holds config.yaml or .hydra/config.yaml, and at least one of metrics.csv (anywhere
below), summary.json and eval/records.jsonl. Validation pictures are in pictures/.
"""

import csv
import glob
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from open_supir.base.images.listing import IMAGE_SUFFIXES
from open_supir.base.run_folders import flatten
from open_supir.base.sweeps import bare, in_order
from open_supir.evaluation.records import Record, read_records

log = logging.getLogger(__name__)

PRUNED = {"checkpoints", "tensorboard", "pictures", "eval", "wandb", "mlruns", ".git"}
Curve = list[tuple[int, float]]  # (step, value), sorted by step


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Everything read from one run folder."""

    path: Path  # the run folder
    label: str  # short name in tables, unique within a comparison
    # the flattened configuration: "trainer.max_steps" -> value
    config: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()  # overrides from the command line
    # contents of summary.json; empty if there is none
    summary: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # logged scalars by name
    # validation pictures, by path below pictures/
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run wrote its summary, which is the last thing it does."""
        return bool(self.summary)

    @cached_property
    def records(self) -> list[Record]:
        """The evaluation records; empty if the run was not evaluated."""
        path = self.path / "eval" / "records.jsonl"
        return read_records(path) if path.is_file() else []


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """Find the run folders at or below places.

    Args:
        places: Run folders, folders that hold runs at any depth, or glob patterns for either.

    Returns:
        Run folders without duplicates, in the order of `places`, sorted by number and name within
        each.

    Raises:
        FileNotFoundError: A place does not exist, or a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for place in places:
        matches = sorted((Path(p) for p in glob.glob(str(place))), key=in_order)
        if not matches and Path(place).is_dir():  # a literal name that contains [ or ?
            matches = [Path(place)]
        if not matches:
            raise FileNotFoundError(f"no such run or folder: {place}")
        for match in matches:
            found.update(dict.fromkeys(_runs_below(match)))
    return list(found)


def newest_sweep(root: Path) -> list[Path]:
    """Return the newest multirun folders `root/<experiment>/multirun/<date_time>` with runs.

    A sweep over experiments leaves several, all with the same date and time.
    """
    sweeps = [path for path in sorted(root.glob("*/multirun/*/")) if _runs_below(path)]
    newest = max((path.name for path in sweeps), default="")
    return [path for path in sweeps if path.name == newest]


def read_run(path: Path) -> FinishedRun:
    """Read one run folder.

    Raises:
        ValueError: A file in the folder is damaged; the message names it.
    """
    config_file = _config_file(path)
    config = {} if config_file is None else _read_yaml(config_file)
    overrides_file = path / ".hydra" / "overrides.yaml"
    overrides = _read_yaml(overrides_file) if overrides_file.is_file() else []
    summary_file = path / "summary.json"
    try:
        summary = json.loads(summary_file.read_text()) if summary_file.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{summary_file}: not JSON ({error})") from None
    curves: dict[str, dict[int, float]] = {}
    for log_file in sorted(path.rglob("metrics*.csv"), key=lambda p: (p.stat().st_mtime, str(p))):
        later = _read_curves(log_file)  # a resumed run logs to a new file and repeats some steps
        start = min((min(points) for points in later.values()), default=math.inf)
        for name in {**curves, **later}:
            kept = {step: y for step, y in curves.get(name, {}).items() if step < start}
            curves[name] = kept | later.get(name, {})
    folder = path / "pictures"
    pictures = {
        p.relative_to(folder).as_posix(): p
        for p in sorted(folder.rglob("*"))
        if p.suffix.lower() in IMAGE_SUFFIXES
    }
    return FinishedRun(
        path=path,
        label=path.name,
        config=flatten(config),
        overrides=tuple(map(str, overrides)),
        summary=summary if isinstance(summary, dict) else {},
        curves={name: sorted(points.items()) for name, points in curves.items() if points},
        pictures=pictures,
    )


def label_runs(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Label each run by the overrides that not all runs share, else by its folder; unique."""
    shared = set.intersection(*(set(run.overrides) for run in runs)) if runs else set()
    labels: list[str] = []
    for run in runs:
        own = [bare(text.lstrip("+~")) for text in run.overrides if text not in shared]
        plain = run.path.name
        if run.path.parent.name != "multirun" and not own and run.path.parent.name:
            plain = f"{run.path.parent.name}/{run.path.name}"
        labels.append(" ".join(own) or plain)
    seen: dict[str, int] = {}
    named = []
    for run, label in zip(runs, labels, strict=True):
        seen[label] = seen.get(label, 0) + 1
        unique = label if labels.count(label) == 1 else f"{label} ({seen[label]})"
        named.append(replace(run, label=unique))
    return named


def config_differences(
    runs: Sequence[FinishedRun], *, ignore: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return the settings that differ between runs: key -> one text per run.

    Args:
        ignore: Irrelevant keys (paths, loggers); "a.b" also ignores everything below it.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)
    differences = {}
    for key in keys:
        if any(key == prefix or key.startswith(prefix + ".") for prefix in ignore):
            continue
        values = [_show(run.config[key]) if key in run.config else "-" for run in runs]
        if len(set(values)) > 1:
            differences[key] = values
    return differences


def final_values(run: FinishedRun) -> dict[str, float]:
    """Return final values: training losses (mean of the last tenth), last val/*, the summary."""
    values: dict[str, float] = {}
    for name, curve in run.curves.items():
        if is_loss(name):
            tail = curve[-max(1, len(curve) // 10) :]  # a single step's loss is too noisy
            values[name] = sum(value for _, value in tail) / len(tail)
        elif name.startswith("val/"):
            values[name] = curve[-1][1]
    for name, value in run.summary.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name not in values:
            values[name] = float(value)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def is_loss(name: str) -> bool:
    """Whether a scalar is a training loss; `guard/loss_spikes` is a count and is not."""
    return name.startswith("train/") and "loss" in name


def _config_file(path: Path) -> Path | None:
    candidates = (path / "config.yaml", path / ".hydra" / "config.yaml")
    return next((file for file in candidates if file.is_file()), None)


def _is_run(path: Path) -> bool:
    if _config_file(path) is None:
        return False
    if (path / "summary.json").is_file() or (path / "eval" / "records.jsonl").is_file():
        return True
    return next(path.rglob("metrics*.csv"), None) is not None


def _runs_below(place: Path) -> list[Path]:
    found = []
    for folder, children, _ in os.walk(place):
        if _is_run(Path(folder)):
            found.append(Path(folder))
            children.clear()  # everything inside a run folder belongs to that run
        children[:] = sorted(set(children) - PRUNED, key=lambda name: in_order(Path(name)))
    return found


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from None


def _read_curves(path: Path) -> dict[str, dict[int, float]]:
    """Read a Lightning CSVLogger file; each row fills only some columns."""
    curves: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            step = row.get("step")
            if not step:
                continue
            for name, text in row.items():
                if name in (None, "step", "epoch") or not text:
                    continue
                try:
                    value = float(text)
                except (TypeError, ValueError):
                    continue  # a text column, or a line truncated when the run was killed
                if math.isfinite(value):
                    curves.setdefault(name, {})[int(float(step))] = value
    return curves


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
