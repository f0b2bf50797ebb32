"""Photographs of one's own, stored for training: reduced, split, and written as shards.

They come from a folder of image files, or from the shards that `src.curate` wrote. What is made of
them depends on their contents and the settings alone; names and order do not matter.
"""

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from open_supir.base.files import printable, temporary_name, write_text
from open_supir.base.images import read_image
from open_supir.base.images.captions import caption_beside
from open_supir.base.images.listing import ImageListing
from open_supir.data.captions import fit_storage
from open_supir.data.dataset import read_meta
from open_supir.data.jpeg_rows import encode_jpeg
from open_supir.data.samples import ImageLimits, SampleError, decode_training_image
from open_supir.data.shards import ShardFolder, StoredSample, read_manifest, write_shards

log = logging.getLogger(__name__)

POSITIVE, HELD_OUT = "positive", "heldout"
START = 64 << 10  # bytes that tell files apart, with their size: EXIF and the first rows
SHARD_SIZE = 500
CHUNK = 64  # images decoded ahead
LOG_SECONDS = 30.0
ANY_SIZE = ImageLimits(min_side=1, max_side=1 << 20, max_pixels=1 << 40)


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How photographs are stored.

    Attributes:
        stored_side: Shorter side that larger photographs are reduced to, in pixels.
        heldout_side: The same for held-out photographs, which are measured whole.
        min_side: Photographs with a shorter side below this are left out.
        max_pixels: So are those with more pixels.
        heldout_share: Share of the photographs that is held out, at least one photograph.
        heldout_most: Number that is held out at most; 0 holds none out.
    """

    stored_side: int
    heldout_side: int
    min_side: int
    max_pixels: int
    heldout_share: float
    heldout_most: int

    def __post_init__(self) -> None:
        if not 0 < self.heldout_share < 1:
            share = self.heldout_share
            raise ValueError(f"data.store.heldout_share must be in (0, 1), got {share}")
        for key in ("stored_side", "heldout_side"):
            side = getattr(self, key)
            if side < self.min_side:
                raise ValueError(
                    f"data.store.{key}={side} is below {self.min_side}, the shorter side that "
                    "crops need (data.crop_size, data.image_limits.min_side)"
                )


class Loaded(NamedTuple):
    """A decoded image with its caption; `stored` are its bytes, if they can stay as they are."""

    pixels: np.ndarray  # (H, W, 3) uint8
    caption: str
    meta: dict[str, Any]
    stored: bytes | None = None


class PhotoCandidate(NamedTuple):
    """An image that may be stored: its name, the key of its place in the order, how to load it."""

    name: str
    key: str
    load: Callable[[], Loaded]


@dataclass
class Report:
    """What became of the images; `skipped` has path, reason and detail of each that was left out.

    `kept` and `bare` count the photographs and those without a caption, by where they went.
    """

    kept: Counter[str] = field(default_factory=Counter)
    bare: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def reasons(self) -> str:
        """Return how many were left out and why, in words, with an example of the main reason."""
        ranked = Counter(reason for _, reason, _ in self.skipped).most_common()
        if not ranked:
            return "none"
        said = ", ".join(f"{reason} {count}" for reason, count in ranked)
        path, _, detail = next(row for row in self.skipped if row[1] == ranked[0][0])
        return f"{said}; for example {path}" + (f": {detail}" if detail else "")


def store_photos(
    target: Path, root: Path, found: ImageListing | dict[str, Path], settings: StoreSettings
) -> Report:
    """Write positive/ (and the other sources), heldout/ and skipped.csv, all or nothing.

    Args:
        target: Folder to make; one that exists is left alone, as another process made it.
        root: What names are relative to.
        found: The image files, or folders of shards by source; those of negative samples lose
            what was made from held-out photographs.

    Raises:
        ValueError: Fewer than two images can be used.
    """
    report, temporary = Report(), temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        if isinstance(found, ImageListing):
            candidates = _files(root, found, settings, report)
            _store(temporary, candidates, settings, report)
        else:
            folders = dict(found)
            _store(temporary, _samples(folders.pop(POSITIVE)), settings, report)
            held = {path.stem for path in (temporary / HELD_OUT).glob("*.png")}
            for name, folder in folders.items():
                _store_source(temporary, name, _samples(folder), held, settings, report)
        text = io.StringIO()
        csv.writer(text).writerows([("path", "reason", "detail"), *sorted(report.skipped)])
        write_text(temporary / "skipped.csv", text.getvalue())
        write_text(temporary / "about.json", json.dumps({"root": str(root), **report.kept}))
        if not target.exists():  # otherwise another node was faster
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _files(
    root: Path, listing: ImageListing, settings: StoreSettings, report: Report
) -> list[PhotoCandidate]:
    """Return the image files, each content once; count the others."""
    seen: dict[str, Path] = {}
    for path in listing.images:
        try:
            with path.open("rb") as file:
                start = file.read(START)
            key = hashlib.blake2b(start + str(path.stat().st_size).encode(), digest_size=16)
        except OSError as error:
            report.skipped.append((printable(path), "cannot be read", str(error.strerror)))
            continue
        first = seen.setdefault(key.hexdigest(), path)
        if first != path:
            report.skipped.append((printable(path), "copy of another file", printable(first)))
    for path, reason, detail in listing.refusals():
        report.skipped.append((printable(path), reason, detail))
    return [
        PhotoCandidate(
            printable(path.relative_to(root)), key, partial(_load_file, path, settings, report)
        )
        for key, path in seen.items()
    ]


def _load_file(path: Path, settings: StoreSettings, report: Report) -> Loaded:
    try:
        image = read_image(path, max_pixels=settings.max_pixels)
    except (ValueError, OSError) as error:
        raise SampleError("cannot be read", str(error)) from error
    caption = ""
    try:
        caption = caption_beside(path)
    except (ValueError, OSError) as error:
        report.skipped.append((printable(path), "caption cannot be read", str(error)))
    pixels = image.permute(1, 2, 0).numpy()
    return Loaded(pixels, caption, {"original_size": list(pixels.shape[:2])})


def _samples(folder: Path) -> list[PhotoCandidate]:
    """Return the samples of a folder of shards."""
    entries = read_manifest(folder, statistics=False)
    shards = ShardFolder(folder, entries)
    return [
        PhotoCandidate(
            key := shards.key(number, sample), key, partial(_load, shards, number, sample)
        )
        for number, entry in enumerate(entries)
        for sample in range(entry.count)
    ]


def _load(shards: ShardFolder, shard: int, sample: int) -> Loaded:
    raw = shards.read(shard, sample)
    pixels = decode_training_image(raw.image, ANY_SIZE)
    caption = (raw.text or b"").decode("utf-8", "replace").strip()
    return Loaded(pixels, caption, read_meta(raw.meta), raw.image)


def _store(
    target: Path, candidates: list[PhotoCandidate], settings: StoreSettings, report: Report
) -> None:
    """Hold out the first photographs, in the order of a hash, and store the others."""
    ordered = sorted(candidates, key=lambda c: hashlib.sha256(c.key.encode()).digest())
    share = max(1, round(settings.heldout_share * len(ordered)))
    loaded = _loaded(ordered, settings, report)
    for candidate, photo in loaded:
        if report.kept[HELD_OUT] >= min(share, settings.heldout_most):
            loaded = chain([(candidate, photo)], loaded)
            break
        _hold_out(target / HELD_OUT, candidate.name, photo, settings.heldout_side)
        _count(report, HELD_OUT, photo)
    samples = (_stored(*one, POSITIVE, settings, report) for one in loaded)
    first = next(samples, None)
    if first is None:
        raise ValueError(
            f"{report.kept.total()} photographs can be used, and at least two are needed, one of "
            f"them to be held out; left out: {report.reasons()}"
        )
    write_shards(target / POSITIVE, chain([first], samples), prefix="own", shard_size=SHARD_SIZE)


def _store_source(
    target: Path,
    source: str,
    candidates: list[PhotoCandidate],
    held: set[str],
    settings: StoreSettings,
    report: Report,
) -> None:
    """Store another source, but for what was made from photographs that are held out."""
    samples = [
        _stored(candidate, photo, source, settings, report)
        for candidate, photo in _loaded(candidates, settings, report)
        if photo.meta.get("of") not in held
    ]
    if samples:
        write_shards(target / source, samples, prefix=f"own-{source}", shard_size=SHARD_SIZE)


def _loaded(
    candidates: Sequence[PhotoCandidate], settings: StoreSettings, report: Report
) -> Iterator[tuple[PhotoCandidate, Loaded]]:
    """Yield what can be used, in order, decoded in threads."""
    start = shown = time.monotonic()

    def load(candidate: PhotoCandidate) -> Loaded | SampleError:
        try:
            loaded = candidate.load()
            height, width = loaded.pixels.shape[:2]
            if min(height, width) < settings.min_side:
                needed = f"shorter side at least {settings.min_side} (data.image_limits.min_side)"
                raise SampleError("too small", f"{width}x{height}, {needed}")
            pixels = reduced(loaded.pixels, max(settings.stored_side, settings.heldout_side))
        except SampleError as error:
            return error
        return loaded if pixels is loaded.pixels else loaded._replace(pixels=pixels, stored=None)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(candidates), CHUNK):
            part = candidates[first : first + CHUNK]
            for candidate, result in zip(part, pool.map(load, part), strict=True):
                if isinstance(result, Loaded):
                    yield candidate, result
                else:
                    report.skipped.append((candidate.name, result.reason, result.detail))
            if time.monotonic() - shown > LOG_SECONDS:
                shown, done = time.monotonic(), first + len(part)
                left = (shown - start) * (len(candidates) - done) / done
                log.info("stored %d of %d photographs, %.0f s left", done, len(candidates), left)


def _stored(
    candidate: PhotoCandidate, photo: Loaded, source: str, settings: StoreSettings, report: Report
) -> StoredSample:
    _count(report, source, photo)
    pixels = reduced(photo.pixels, settings.stored_side)
    data = photo.stored if pixels is photo.pixels else None
    meta = {"source": candidate.name, **photo.meta}
    caption = fit_storage(photo.caption)
    return StoredSample(
        key=candidate.key, image=data or encode_jpeg(pixels), caption=caption, meta=meta
    )


def _hold_out(folder: Path, name: str, photo: Loaded, side: int) -> None:
    """Write a held-out photograph as PNG, with its caption in a text file."""
    path = folder / Path(name).with_suffix(".png")
    if path.exists():  # a.jpg and a.png
        path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(reduced(photo.pixels, side)).save(path)
    if photo.caption:
        path.with_suffix(".txt").write_text(photo.caption + "\n", encoding="utf-8")


def _count(report: Report, where: str, photo: Loaded) -> None:
    report.kept[where] += 1
    report.bare[where] += not photo.caption


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduce (H, W, 3) uint8 to this shorter side; smaller images are returned as they are."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= side:
        return pixels
    size = (max(side, round(width * side / short)), max(side, round(height * side / short)))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
