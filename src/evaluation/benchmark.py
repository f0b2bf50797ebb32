"""Run methods over images and metrics; what cannot be measured is recorded, not hidden.

Images are (1, 3, H, W) float in [0, 1]. Everything is measured on the 8-bit image that a user
would save.
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.evaluation.metrics import Metric, Score, check_weights, select_metrics
from src.evaluation.records import WHOLE_SET, Record, Status, read_records, write_records
from src.evaluation.weights import offline
from src.images import read_image, to_uint8, to_unit, write_image

log = logging.getLogger(__name__)

REFERENCE_FOLDER = "hq"
SAVE_SECONDS = 60.0
MIN_SET_SIZE = 50  # fewer images say nothing about a distribution; papers use thousands


class Sample(NamedTuple):
    """One input of a benchmark.

    Attributes:
        name: Unique among the images.
        lq, hq: (1, 3, H, W) in [0, 1]; hq is None where there is no reference.
        source: The file it was read from; captions lie beside it.
        degradation: How `lq` was made of `hq`, as JSON values; empty where that is not known.
    """

    name: str
    lq: Tensor
    hq: Tensor | None
    source: Path | None = None
    degradation: Mapping[str, Any] = MappingProxyType({})


Method = Callable[[Sample], Tensor]  # returns the restored image, of the size of hq


@dataclass(frozen=True, kw_only=True)
class BrokenSample:
    """Stands among the samples for an input that could not be used; it is recorded by name."""

    name: str
    reason: str


def run_benchmark(
    images: Iterable[Sample | tuple[str, Tensor, Tensor | None] | BrokenSample],
    methods: Mapping[str, Method],
    metrics: Iterable[str],
    *,
    out_dir: Path,
    run: str,
    settings: Mapping[str, Any] | None = None,
    border: int = 0,
    save_images: bool = False,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> list[Record]:
    """Restore every image by every method, measure, and write `out_dir/records.jsonl`.

    Args:
        images: Samples, names unique; a plain (name, lq, hq or None) will do.
        methods: Name -> function Sample -> restored, which has the size of hq (of lq without hq).
        metrics: Names in METRICS.
        out_dir: Gets records.jsonl, and images/<method>/<image>.png where pictures are saved.
        run: Name of the run, for comparing runs.
        settings: What the numbers depend on (protocol, seed, checkpoint); JSON values.
        border: Pixels cut from each side before measuring.
        save_images: Keep the restored pictures, and the references as `hq`.
        resume: Reuse values that records.jsonl holds for the same run and settings.
        device: Where learned metrics run.

    Returns:
        The records, in the order of images, methods, metrics.

    Raises:
        ValueError: A metric is unknown, or two images share a name.
    """
    chosen = select_metrics(metrics)
    missing = check_weights([metric.name for metric in chosen])
    row = _RowMaker(run=run, settings=as_json(settings or {}))
    path = out_dir / "records.jsonl"
    known = _known_values(path, row) if resume else {}
    if not known:
        path.unlink(missing_ok=True)  # its values never stand beside pictures of this run
    singles = [m for m in chosen if m.name not in missing and not m.per_set]
    sets = [m for m in chosen if m.name not in missing and m.per_set]

    with ExitStack() as stack:
        stack.enter_context(offline())
        pictures = out_dir / "images"
        if sets and not save_images:
            pictures = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keep = pictures if save_images or sets else None
        judge = _Judge(singles, border=border, device=torch.device(device))
        records: list[Record] = []
        seen: set[str] = set()
        saved = time.monotonic()
        for sample in images:
            sample = sample if isinstance(sample, BrokenSample) else Sample(*sample)
            name = sample.name
            if name in seen:
                raise ValueError(f"two images are named {name!r}; names must differ")
            seen.add(name)
            records += _measure_image(sample, methods, judge, row, known, keep)
            log.info("measured %s (%d images so far)", name, len(seen))
            if time.monotonic() - saved > SAVE_SECONDS:
                write_records(records, path)
                saved = time.monotonic()
        for method in methods:
            records += _measure_sets(sets, method, pictures, torch.device(device), row)
            for name, files in missing.items():
                reason = "; ".join(map(str, files))
                records.append(row(WHOLE_SET, method, name, None, "missing_weights", reason))

    write_records(records, path)
    return records


def as_json(value: Any) -> Any:
    """Return a value as JSON would give it back: tuples as lists, infinities as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@dataclass(frozen=True)
class _RowMaker:
    run: str
    settings: dict[str, Any]

    def __call__(
        self, image: str, method: str, metric: str, value: float | None, status: Status, reason: str
    ) -> Record:
        return Record(
            image=image, method=method, metric=metric, value=value, run=self.run,
            settings=self.settings, status=status, reason=reason,
        )  # fmt: skip


class _Judge:
    """The metrics, each built once, when first asked for; a metric that fails stays failed."""

    def __init__(self, metrics: list[Metric], *, border: int, device: torch.device) -> None:
        self.metrics = metrics
        self._border = border
        self._device = device
        self._scores: dict[str, Score | str] = {}

    def __call__(
        self, metric: Metric, restored: Tensor, reference: Tensor | None
    ) -> tuple[float | None, Status, str]:
        """Score one image: value, status, reason."""
        if metric.needs_reference and reference is None:
            return None, "no_reference", f"{metric.name} needs a reference image"
        restored = self._cut(restored)
        if not metric.needs_reference:
            reference = None
        reference = None if reference is None else self._cut(reference)
        height, width = restored.shape[-2:]
        if min(height, width) < metric.min_side:
            reason = f"{height}x{width} is below the {metric.min_side} pixels {metric.name} needs"
            return None, "too_small", reason
        score = self._score(metric)
        if isinstance(score, str):
            return None, "metric_failed", score
        try:
            value = score(restored, reference)
        except Exception as error:  # third-party code; the row says what happened
            return None, "metric_failed", f"{type(error).__name__}: {error}"
        if not math.isfinite(value):
            return None, "not_finite", f"{metric.name} returned {value}"
        return value, "ok", ""

    def _score(self, metric: Metric) -> Score | str:
        if metric.name not in self._scores:
            try:
                self._scores[metric.name] = metric.build(self._device)
            except Exception as error:  # third-party code; the rows say what happened
                log.warning("metric %s cannot be built: %s", metric.name, error)
                reason = f"{metric.name} cannot be built: {type(error).__name__}: {error}"
                self._scores[metric.name] = reason
        return self._scores[metric.name]

    def _cut(self, image: Tensor) -> Tensor:
        cut = self._border
        return image[..., cut:-cut, cut:-cut] if cut else image


def _measure_image(
    sample: Sample | BrokenSample,
    methods: Mapping[str, Method],
    judge: _Judge,
    row: _RowMaker,
    known: Mapping[tuple[str, str, str], float],
    pictures: Path | None,
) -> list[Record]:
    if isinstance(sample, BrokenSample):
        log.warning("%s left out: %s", sample.name, sample.reason)
        return [
            row(sample.name, method, metric.name, None, "load_failed", sample.reason)
            for method in methods
            for metric in judge.metrics
        ]
    name, hq = sample.name, sample.hq
    reference = None if hq is None else _eight_bit(hq)
    if reference is not None and pictures is not None:
        write_image(picture_path(pictures, REFERENCE_FOLDER, name), reference[0])
    records: list[Record] = []
    for method, restore in methods.items():
        values = {m.name: known.get((name, method, m.name)) for m in judge.metrics}
        target = None if pictures is None else picture_path(pictures, method, name)
        done = all(value is not None for value in values.values())
        if done and (target is None or target.is_file()):
            records += [row(name, method, key, value, "ok", "") for key, value in values.items()]
            continue
        restored = _restore(restore, sample, kept=target if known else None)
        if isinstance(restored, str):
            log.warning("%s failed on %s: %s", method, name, restored)
            records += [
                row(name, method, metric.name, None, "restore_failed", restored)
                for metric in judge.metrics
            ]
            continue
        if target is not None:
            write_image(target, restored[0])
        for metric in judge.metrics:
            value = values[metric.name]
            result = (value, "ok", "") if value is not None else judge(metric, restored, reference)
            records.append(row(name, method, metric.name, *result))
    return records


def _restore(restore: Method, sample: Sample, *, kept: Path | None) -> Tensor | str:
    """Return the restored 8-bit image, or why there is none; a kept picture saves the work."""
    if kept is not None and kept.is_file():
        return to_unit(read_image(kept)).unsqueeze(0)
    try:
        with torch.no_grad():
            image = restore(sample).detach().float().cpu()
    except Exception as error:  # one bad image must not end the benchmark
        return f"{type(error).__name__}: {error}"
    expected = sample.lq if sample.hq is None else sample.hq
    if image.shape != expected.shape:
        return f"restored image is {_size(image)}, expected {_size(expected)}"
    if not torch.isfinite(image).all():
        return "restored image has NaN or infinite values"
    return _eight_bit(image)


def _measure_sets(
    metrics: list[Metric], method: str, pictures: Path, device: torch.device, row: _RowMaker
) -> list[Record]:
    """Score the whole set of one method's pictures against the references."""
    records = []
    restored, reference = pictures / method, pictures / REFERENCE_FOLDER
    count = min(len(list(restored.glob("*.png"))), len(list(reference.glob("*.png"))))
    for metric in metrics:
        value: float | None = None
        status: Status = "ok"
        reason = ""
        if not reference.is_dir():
            status, reason = "no_reference", f"{metric.name} needs reference images"
        elif count < MIN_SET_SIZE:
            status = "too_small"
            reason = f"{metric.name} compares sets of at least {MIN_SET_SIZE} images, got {count}"
        else:
            try:
                value = metric.build(device)(restored, reference)
            except Exception as error:  # third-party code; the row says what happened
                status, reason = "metric_failed", f"{type(error).__name__}: {error}"
        if value is not None and not math.isfinite(value):
            reason = f"{metric.name} returned {value}"
            value, status = None, "not_finite"
        records.append(row(WHOLE_SET, method, metric.name, value, status, reason))
    return records


def picture_path(folder: Path, method: str, name: str) -> Path:
    """Return where the picture of one method and image is kept."""
    return folder / method / (name.replace("/", "__").replace("\\", "__") + ".png")


def _known_values(path: Path, row: _RowMaker) -> dict[tuple[str, str, str], float]:
    """Return the values in `path` that were measured by the same run under the same settings."""
    if not path.is_file():
        return {}
    return {
        (record["image"], record["method"], record["metric"]): record["value"]
        for record in read_records(path)
        if record["value"] is not None
        and record["run"] == row.run
        and record["settings"] == row.settings
    }


def _eight_bit(image: Tensor) -> Tensor:
    return to_unit(to_uint8(image.detach().cpu()))


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
