"""Run methods and metrics over images; failures are recorded, never dropped silently.

Images are (1, 3, H, W) float in [0, 1]. Metrics see the 8-bit image that a user would save.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_supir.base.images import read_image, to_unit
from open_supir.base.images.write import write_image
from open_supir.evaluation.journal import Journal, Values
from open_supir.evaluation.metrics import METRICS, Metric, Score, check_weights, select_metrics
from open_supir.evaluation.provenance import InputFacts, describe_input
from open_supir.evaluation.records import WHOLE_SET, Record, Status
from open_supir.evaluation.regions import Regions, cut_to
from open_supir.evaluation.samples import (
    BrokenSample,
    Method,
    Output,
    Sample,
    as_json,
    rounded_to_8_bits,
)
from open_supir.evaluation.weights import offline

log = logging.getLogger(__name__)

REFERENCE_FOLDER = "hq"
MIN_SET_SIZE = 50  # too few images to describe a distribution below this; papers use thousands

Images = Iterable[Sample | tuple[str, Tensor, Tensor | None] | BrokenSample]
Result = tuple[float | None, Status, str]  # value, status, reason


def run_benchmark(
    images: Images,
    methods: Mapping[str, Method],
    metrics: Iterable[str],
    *,
    out_dir: Path,
    run: str,
    settings: Mapping[str, Any] | None = None,
    method_settings: Mapping[str, Mapping[str, Any]] | None = None,
    border: int = 0,
    save_images: bool = False,
    resume: bool = False,
    device: torch.device | str = "cpu",
    regions: Regions | None = None,
) -> list[Record]:
    """Restore every image with every method, measure, and write `out_dir/records.jsonl`.

    Args:
        images: Samples with unique names; a plain tuple (name, lq, hq or None) also works.
        methods: Name -> function from a Sample to its restored image, sized like hq (or lq if
            there is no hq).
        out_dir: Receives records.jsonl, and images/<method>/<image>.png if pictures are saved.
        settings: What all values depend on (protocol, seed), as JSON values.
        method_settings: Method -> what else its values depend on (checkpoint, options).
        border: Pixels cropped from each side before measuring.
        save_images: Keep the restored pictures, and the references as `hq`.
        resume: Reuse values in records.jsonl from the same run, settings and inputs.
        regions: Where images are measured; None measures all of them.

    Returns:
        The records, ordered by image, method and metric.

    Raises:
        ValueError: A metric is unknown, two images share a name, or a name is not a relative path.
    """
    chosen = select_metrics(metrics)
    missing = check_weights([metric.name for metric in chosen])
    if regions is not None and (whole := [metric.name for metric in chosen if metric.per_set]):
        raise ValueError(f"metrics.mask: {whole[0]} compares sets of whole images; leave it out")
    own = method_settings or {}
    all_settings = {m: as_json({**(settings or {}), **own.get(m, {})}) for m in methods}
    row = _RowMaker(run=run, settings=all_settings)
    journal = Journal(out_dir, run=run, settings=all_settings, resume=resume)
    usable = [m for m in chosen if m.name not in missing]
    sets = [m for m in usable if m.per_set]
    singles = [m for m in usable if not m.per_set]
    judge = _Judge(singles, border=border, device=torch.device(device))
    keep = save_images or bool(sets)
    with offline(), _picture_folder(out_dir, temporary=bool(sets) and not save_images) as pictures:
        measurer = _ImageMeasurer(
            methods=methods, judge=judge, row=row, pictures=pictures, keep=keep, regions=regions
        )
        records, inputs = measurer.measure_all(images, journal)
        for method in methods:
            done = {r["image"] for r in records if r["method"] == method and r["status"] == "ok"}
            reused = journal.values_of_set(method, done, inputs)
            records += _measure_sets(sets, method, inputs, pictures, judge, row, reused)
            records += [
                row(WHOLE_SET, method, name, None, "missing_weights", "; ".join(map(str, files)))
                for name, files in missing.items()
            ]
    journal.save(records, inputs)
    return records


@contextlib.contextmanager
def _picture_folder(out_dir: Path, *, temporary: bool) -> Iterator[Path]:
    if temporary:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield out_dir / "images"


def _named(images: Images) -> Iterator[Sample | BrokenSample]:
    """Yield the samples; check that names are unique and stay within the output folder."""
    seen: set[str] = set()
    for image in images:
        sample = image if isinstance(image, Sample | BrokenSample) else Sample(*image)
        name = sample.name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"image {name!r}: its picture would be outside the output folder")
        if name in seen:
            raise ValueError(f"two images are named {name!r}; names must differ")
        seen.add(name)
        yield sample


@dataclass(frozen=True)
class _RowMaker:
    run: str
    settings: dict[str, dict[str, Any]]  # by method

    def __call__(
        self, image: str, method: str, metric: str, value: float | None, status: Status, reason: str
    ) -> Record:
        return Record(
            image=image, method=method, metric=metric, value=value, run=self.run,
            settings=self.settings[method], status=status, reason=reason,
        )  # fmt: skip


class _Judge:
    """The metrics, each built once on first use; one that cannot be built is not tried again."""

    def __init__(self, metrics: list[Metric], *, border: int, device: torch.device) -> None:
        self.metrics = metrics
        self._border = border
        self.device = device
        self._scores: dict[str, Score | str] = {}

    def __call__(
        self,
        metric: Metric,
        restored: Tensor,
        reference: Tensor | None,
        region: Tensor | None = None,
    ) -> Result:
        """Score one image, or a region (H, W) of it."""
        if metric.needs_reference and reference is None:
            return None, "no_reference", f"{metric.name} needs a reference image"
        if not metric.needs_reference:
            reference = None
        if region is not None:
            restored, reference = cut_to(region, restored, reference)
        restored = self._cut(restored)
        reference = None if reference is None else self._cut(reference)
        height, width = restored.shape[-2:]
        if min(height, width) < metric.min_side:
            reason = f"{height}x{width} is below the {metric.min_side} pixels {metric.name} needs"
            return None, "too_small", reason
        score = self._score(metric)
        if isinstance(score, str):
            return None, "metric_failed", score
        return _scored(metric, lambda: score(restored, reference))

    def _score(self, metric: Metric) -> Score | str:
        if metric.name not in self._scores:
            try:
                self._scores[metric.name] = metric.build(self.device)
            except Exception as error:  # third-party code; the rows record the error
                log.warning("metric %s cannot be built: %s", metric.name, error)
                reason = f"{metric.name} cannot be built: {type(error).__name__}: {error}"
                self._scores[metric.name] = reason
        return self._scores[metric.name]

    def _cut(self, image: Tensor) -> Tensor:
        cut = self._border
        return image[..., cut:-cut, cut:-cut] if cut else image


@dataclass(frozen=True, kw_only=True)
class _ImageMeasurer:
    """Measures images one by one: every method, and every metric that scores single images."""

    methods: Mapping[str, Method]
    judge: _Judge
    row: _RowMaker
    pictures: Path
    keep: bool  # keep the restored pictures and the references
    regions: Regions | None

    def measure_all(
        self, images: Images, journal: Journal
    ) -> tuple[list[Record], dict[str, InputFacts]]:
        """Return the records, and what is known of each input."""
        records: list[Record] = []
        inputs: dict[str, InputFacts] = {}
        for number, sample in enumerate(_named(images), start=1):
            if isinstance(sample, BrokenSample):
                records += self._skipped(sample.name, sample.reason)
            else:
                inputs[sample.name] = describe_input(sample)
                records += self._measure(sample, journal.values_of_image(inputs[sample.name]))
            log.info("measured %s (%d images so far)", sample.name, number)
            journal.save_sometimes(records, inputs)
        return records, inputs

    def _skipped(self, name: str, reason: str) -> list[Record]:
        log.warning("skipping %s: %s", name, reason)
        return [row for m in self.methods for row in self._rows(name, m, "load_failed", reason)]

    def _measure(self, sample: Sample, known: Values) -> list[Record]:
        shown = sample.lq if sample.hq is None else sample.hq
        reference = None if sample.hq is None else rounded_to_8_bits(sample.hq)
        if reference is not None and self.keep:
            write_image(picture_path(self.pictures, REFERENCE_FOLDER, sample.name), reference[0])
        height, width = shown.shape[-2:]
        try:
            region = None if self.regions is None else self.regions.of(sample, (height, width))
        except ValueError as error:
            return self._skipped(sample.name, str(error))
        return [
            record
            for method in self.methods
            for record in self._measure_method(method, sample, reference, region, known)
        ]

    def _measure_method(
        self,
        method: str,
        sample: Sample,
        reference: Tensor | None,
        region: Tensor | None,
        known: Values,
    ) -> list[Record]:
        """Return a row for each metric, and for each value that the method gives itself."""
        name = sample.name
        values = {m.name: known.get((name, method, m.name)) for m in self.judge.metrics}
        own = _known_values(known, name, method)
        target = picture_path(self.pictures, method, name)
        missing = [metric for metric in self.judge.metrics if values[metric.name] is None]
        results: dict[str, Result] = {key: (value, "ok", "") for key, value in values.items()}
        if missing or not values or (self.keep and not target.is_file()):
            is_current = len(missing) < len(values)  # the saved picture has the same settings
            made = _restore(self.methods[method], sample, kept=target if is_current else None)
            if isinstance(made, str) or not (self.keep or is_current):
                target.unlink(missing_ok=True)
            if isinstance(made, str):
                log.warning("%s failed on %s: %s", method, name, made)
                return self._rows(name, method, "restore_failed", made)
            if self.keep:
                write_image(target, made.image[0])
            own = made.values or own
            results |= {m.name: self.judge(m, made.image, reference, region) for m in missing}
        rows = [self.row(name, method, key, value, "ok", "") for key, value in own.items()]
        return rows + [self.row(name, method, key, *result) for key, result in results.items()]

    def _rows(self, name: str, method: str, status: Status, reason: str) -> list[Record]:
        return [self.row(name, method, m.name, None, status, reason) for m in self.judge.metrics]


def _known_values(known: Values, name: str, method: str) -> dict[str, float]:
    """Return the earlier values of a method's own columns."""
    return {
        key: value
        for (image, row, key), value in known.items()
        if (image, row) == (name, method) and key not in METRICS and value is not None
    }


def _restore(restore: Method, sample: Sample, *, kept: Path | None) -> Output | str:
    """Return the restored 8-bit image, or the reason for failure; reuse a kept picture."""
    if kept is not None and kept.is_file():
        with contextlib.suppress(ValueError):  # damaged: restore again
            return Output(to_unit(read_image(kept)).unsqueeze(0))
    try:
        with torch.no_grad():
            made = restore(sample)
        made = made if isinstance(made, Output) else Output(made)
        image = made.image.detach().float().cpu()
    except Exception as error:  # one bad image must not end the benchmark
        return f"{type(error).__name__}: {error}"
    expected = sample.lq if sample.hq is None else sample.hq
    if image.shape != expected.shape:
        return f"restored image is {_size(image)}, expected {_size(expected)}"
    if not torch.isfinite(image).all():
        return "restored image has NaN or infinite values"
    return made._replace(image=rounded_to_8_bits(image))


def _measure_sets(
    metrics: list[Metric],
    method: str,
    inputs: Mapping[str, InputFacts],
    pictures: Path,
    judge: _Judge,
    row: _RowMaker,
    known: Values,
) -> list[Record]:
    """Score the whole set of one method's pictures against the references."""
    paired = [name for name, facts in inputs.items() if facts["hq_size"] is not None]
    made = [name for name in paired if picture_path(pictures, method, name).is_file()]
    partly = "" if len(made) == len(paired) else f"{len(made)} of {len(paired)} images"
    few = f"compares sets of {MIN_SET_SIZE} images or more, got {len(made)}"
    records = []
    for metric in metrics:
        result: Result
        value = known.get((WHOLE_SET, method, metric.name))
        if value is not None:
            result = value, "ok", partly
        elif not paired:
            result = None, "no_reference", f"{metric.name} needs reference images"
        elif len(made) < MIN_SET_SIZE:
            result = None, "too_small", f"{metric.name} {few}"
        else:
            value, status, reason = _score_set(metric, method, made, pictures, judge.device)
            result = value, status, reason or partly
        records.append(row(WHOLE_SET, method, metric.name, *result))
    return records


def _score_set(
    metric: Metric, method: str, names: list[str], pictures: Path, device: torch.device
) -> Result:
    with tempfile.TemporaryDirectory() as folder:  # exclude other files in the folder
        for index, name in enumerate(names):
            for kind in (method, REFERENCE_FOLDER):
                link = Path(folder) / kind / f"{index}.png"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(picture_path(pictures, kind, name).absolute())
        restored, reference = Path(folder) / method, Path(folder) / REFERENCE_FOLDER
        return _scored(metric, lambda: metric.build(device)(restored, reference))


def _scored(metric: Metric, compute: Callable[[], float]) -> Result:
    try:
        value = compute()
    except Exception as error:  # third-party code; the row records the error
        return None, "metric_failed", f"{type(error).__name__}: {error}"
    if not math.isfinite(value):
        return None, "not_finite", f"{metric.name} returned {value}"
    return value, "ok", ""


def picture_path(folder: Path, method: str, name: str) -> Path:
    """Return the path of one method's picture of one image."""
    return folder / method / f"{name}.png"


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape))
