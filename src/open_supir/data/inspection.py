"""Inspection of shard folders: what is intact, what would be skipped, and why.

Also builds missing indexes and manifests, for tars made by other tools.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from open_supir.base.folders import walk
from open_supir.base.rng import keyed_rng
from open_supir.data.dataset import read_caption, read_meta
from open_supir.data.index import TarIndex, index_tar
from open_supir.data.samples import ImageLimits, SampleError, decode_training_image
from open_supir.data.shards import (
    MANIFEST,
    ShardEntry,
    ShardFolder,
    StorageError,
    describe_shard,
    index_path,
    load_index,
    read_manifest,
    save_index,
    write_manifest,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """How thorough an inspection is, and whether it may write files.

    `samples_per_shard` images of each shard are decoded, chosen at random but the same every time;
    -1 decodes all. `hash` compares the sha256 of every tar. `build` writes missing indexes and
    manifests.
    """

    samples_per_shard: int = 20
    hash: bool = False
    build: bool = True
    missing_caption: str = "skip"
    limits: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        if self.samples_per_shard < -1:
            raise ValueError(f"samples_per_shard must be -1 or more, got {self.samples_per_shard}")
        if self.missing_caption not in ("skip", "empty"):
            raise ValueError(f"missing_caption must be skip or empty, got {self.missing_caption!r}")


@dataclass
class FolderReport:
    """The contents of one folder of shards.

    `faults` are shards that would stop a run or silently lose samples; `skipped` counts by reason
    the samples and members that training skips; `decoded` of the `samples` were decoded, and `bad`
    of those were refused.
    """

    folder: Path
    shards: int = 0
    samples: int = 0
    decoded: int = 0
    bad: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)

    def skip(self, reason: str, where: str) -> None:
        """Count one sample or member that training skips."""
        self.skipped[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < 5:
            names.append(where)


def shard_folders(root: str | Path) -> list[Path]:
    """List `root` and the folders below it that hold tars or a manifest, sorted.

    Linked folders count, since training reads them. Of a folder that `src.curate` wrote, only its
    `shards` do, not the tars of its intermediate steps.

    Raises:
        FileNotFoundError: `root` is not a folder, or there are no tars in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={root}: no such folder")
    if (root / "shards").is_dir() and (root / "work").is_dir():
        root = root / "shards"

    def skip(folder: Path, reason: str) -> None:
        log.warning("not checked: %s: %s", folder, reason)

    found = [
        folder
        for folder, names in walk(root, skip)
        if any(name == MANIFEST or name.endswith(".tar") for name in names)
    ]
    if not found:
        raise FileNotFoundError(f"{root}: no tars in this folder or below it")
    return sorted(found)


def inspect_folder(folder: Path, settings: InspectSettings) -> FolderReport:
    """Inspect one folder of shards, and build what is missing if `settings.build` allows it."""
    report = FolderReport(folder)
    try:
        listed = {e.name: e for e in read_manifest(folder)}
    except FileNotFoundError:
        listed = None
        if not settings.build:
            report.faults.append(f"no {MANIFEST}")
    except ValueError as error:
        listed = {}
        report.faults.append(str(error))
    tars = sorted(path.name for path in folder.glob("*.tar"))
    for name in sorted(set(listed or {}) - set(tars)):
        report.faults.append(f"{name}: listed in {MANIFEST}, but missing")
    good = []
    for name in tars:
        entry = _inspect_shard(folder / name, listed, settings, report)
        if entry is not None and entry.count:
            good.append(entry)
    if listed is None and settings.build and good:
        write_manifest(folder, good)
        report.built.append(MANIFEST)
    report.shards, report.samples = len(good), sum(entry.count for entry in good)
    _decode(ShardFolder(folder, good), settings, report)
    return report


def _inspect_shard(
    path: Path,
    listed: dict[str, ShardEntry] | None,
    settings: InspectSettings,
    report: FolderReport,
) -> ShardEntry | None:
    """Walk the headers of one tar; return its entry if training can read it."""
    index = index_tar(path)
    for reason, count in index.skipped.items():
        report.skipped[reason] += count
        names = [f"{path.name}: {name}" for name in index.examples[reason]]
        report.examples[reason] = (report.examples.get(reason, []) + names)[:5]
    if index.damage:
        report.faults.append(f"{path.name}: {index.damage}")
        return None
    if not len(index.rows):
        report.faults.append(f"{path.name}: no samples")
        return None
    entry = (listed or {}).get(path.name)
    if listed and entry is None:
        report.faults.append(f"{path.name}: not listed in {MANIFEST}, so training ignores it")
        return None
    if entry is not None and not _agrees(path, entry, index, settings, report):
        return None
    if not _has_index(path, index):
        if not settings.build:
            report.faults.append(f"{path.name}: its index is missing or does not match")
            return None
        save_index(path, index)
        report.built.append(index_path(path).name)
    if entry is None:
        entry = describe_shard(path, index, name=path.name, statistics=_statistics(index))
    return entry


def _agrees(
    path: Path,
    entry: ShardEntry,
    index: TarIndex,
    settings: InspectSettings,
    report: FolderReport,
) -> bool:
    """Compare a tar with its manifest entry."""
    size = path.stat().st_size
    if (size, len(index.rows)) != (entry.bytes, entry.count):
        report.faults.append(
            f"{path.name}: {size} bytes and {len(index.rows)} samples, but {MANIFEST} lists "
            f"{entry.bytes} and {entry.count}"
        )
        return False
    if settings.hash:
        found = describe_shard(path, index, name=path.name, statistics={})
        if found.sha256 != entry.sha256:
            report.faults.append(f"{path.name}: sha256 differs from {MANIFEST}")
            return False
    return True


def _has_index(path: Path, index: TarIndex) -> bool:
    try:
        return np.array_equal(load_index(path, count=len(index.rows)), index.rows)
    except StorageError:
        return False


def _statistics(index: TarIndex) -> dict[str, Any]:
    sizes = index.rows["image_size"]
    words = {"min": int(sizes.min()), "mean": int(sizes.mean()), "max": int(sizes.max())}
    return {"image_bytes": words}


def _decode(folder: ShardFolder, settings: InspectSettings, report: FolderReport) -> None:
    """Decode some samples of each shard under the rules of training."""
    for number, entry in enumerate(folder.entries):
        for sample in _chosen(entry, settings.samples_per_shard):
            try:
                raw = folder.read(number, sample)
            except StorageError as error:
                report.faults.append(str(error))
                break
            report.decoded += 1
            try:
                read_caption(raw.text, settings.missing_caption)
                read_meta(raw.meta)
                decode_training_image(raw.image, settings.limits)
            except SampleError as error:
                report.bad += 1
                report.skip(error.reason, f"{entry.name}: {raw.key} {error.detail}".strip())


def _chosen(entry: ShardEntry, count: int) -> Sequence[int] | Iterator[int]:
    if count < 0 or count >= entry.count:
        return range(entry.count)
    rng = keyed_rng("inspect", entry.name)
    return sorted(int(i) for i in rng.choice(entry.count, size=count, replace=False))


def inspect_folders(root: str, settings: InspectSettings) -> list[FolderReport]:
    """Inspect every folder of shards below `root`."""
    reports = []
    for folder in shard_folders(root):
        log.info("checking %s", folder)
        reports.append(inspect_folder(folder, settings))
    return reports


def verdict(reports: Sequence[FolderReport], limit: float) -> str | None:
    """Return why the data is not fit for training, or None.

    `limit` is the share of decoded samples that may be refused.
    """
    faults = [f"{r.folder}/{fault}" for r in reports for fault in r.faults]
    if faults:
        return f"{len(faults)} faulty shards or manifests, first: {faults[0]}"
    decoded = sum(r.decoded for r in reports)
    bad = sum(r.bad for r in reports)
    if bad > limit * decoded:
        bare = sum(r.skipped["caption missing"] for r in reports)
        way_out = "; settings.missing_caption=empty accepts those without a caption" if bare else ""
        return f"{bad} of {decoded} decoded samples were refused, limit {limit:.2%}{way_out}"
    if not sum(r.samples for r in reports):
        return "no samples at all"
    return None
