"""Read the images of a unit, from files or from a third-party tar."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from open_supir.base.images.captions import caption_beside, caption_file, decode_text
from open_supir.base.images.listing import IMAGE_SUFFIXES
from open_supir.curation.sources import utf8_of
from open_supir.curation.tables import read_rows
from open_supir.curation.work import Unit, digest
from open_supir.data.index import SIZE_LIMITS, index_tar
from open_supir.data.samples import SampleError
from open_supir.data.shards import RawSample, ShardEntry, ShardFolder

MAX_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One input image as bytes, or the error on reading it."""

    key: str
    path: str
    source: str
    licence: str | None
    caption: str | None
    data: bytes = b""
    meta: dict[str, Any] = field(default_factory=dict)
    error: SampleError | None = None


def read_candidates(unit: Unit, *, keep_keys: bool) -> Iterator[Candidate]:
    """Yield every image of a unit, in order.

    Args:
        unit: A unit of the listing.
        keep_keys: Use the keys of the tars instead of making new ones; they must be unique in all
            the input.

    Raises:
        OSError: The storage failed: a tar cannot be read. A missing image is a Candidate.
    """
    for row in read_rows(Path(unit.inputs["listing"])):
        if unit.inputs["kind"] == "tar":
            yield from _from_tar(row, keep_keys)
        else:
            yield from _from_file(row)


def _from_file(row: dict[str, Any]) -> Iterator[Candidate]:
    """Yield an image file; before it, its caption file if that cannot be read."""
    known: dict[str, Any] = {name: row[name] for name in ("key", "source", "licence")}
    path, caption = Path(os.fsdecode(row["path"])), row["caption"]
    if row.get("reason"):
        error = SampleError(row["reason"], row["detail"] or "")
        yield Candidate(**known, path=utf8_of(row["path"]), caption=None, error=error)
        return
    try:
        caption = caption or caption_beside(path) or None
    except (ValueError, OSError) as error:
        text: dict[str, Any] = known | {"key": digest("key", row["key"], "caption")}
        about = SampleError("caption cannot be read", str(error))
        yield Candidate(**text, path=utf8_of(caption_file(path) or path), caption=None, error=about)
    yield _image(row, path, caption)


def _image(row: dict[str, Any], path: Path, caption: str | None) -> Candidate:
    known = {name: row[name] for name in ("key", "source", "licence")}
    known["path"] = utf8_of(row["path"])
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait
            raise SampleError("file unreadable", "not a regular file")
        if facts.st_size > MAX_BYTES:
            raise SampleError("file too large", f"over {MAX_BYTES} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        return Candidate(**known, caption=None, error=SampleError("file missing"))
    except SampleError as error:
        return Candidate(**known, caption=None, error=error)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP):
            raise  # the storage
        return Candidate(**known, caption=None, error=SampleError("file unreadable", str(error)))
    return Candidate(**known, caption=caption, data=data)


def _from_tar(row: dict[str, Any], keep_keys: bool) -> Iterator[Candidate]:
    """Yield the samples of a tar; members that training could not read come with an error."""
    path = os.fsdecode(row["path"])
    index = index_tar(path, max_examples=None)
    fd = os.open(path, os.O_RDONLY)
    try:
        for sample in index.rows:
            name = sample["key"].decode("ascii")
            parts = {}
            for kind in SIZE_LIMITS:
                offset, size = int(sample[f"{kind}_offset"]), int(sample[f"{kind}_size"])
                parts[kind] = os.pread(fd, size, offset) if offset else None
            raw = RawSample(name, **parts)  # type: ignore[arg-type]
            key = name if keep_keys else digest("key", row["key"], name)
            yield _from_sample(raw, row, key)
    finally:
        os.close(fd)
    problems = [(reason, name) for reason, names in index.examples.items() for name in names]
    problems += [("tar damaged", index.damage)] if index.damage else []
    for reason, name in problems:
        if reason.startswith("suffix not") and not name.lower().endswith(IMAGE_SUFFIXES):
            continue  # img2dataset's own files, such as statistics
        yield Candidate(
            key=digest("key", row["key"], reason, name),
            path=f"{utf8_of(row['path'])}::{name}",
            source=row["source"],
            licence=None,
            caption=None,
            error=SampleError(reason if reason == "tar damaged" else "tar member refused", reason),
        )


def _from_sample(raw: RawSample, row: dict[str, Any], key: str) -> Candidate:
    try:
        meta = json.loads(raw.meta or b"{}")
        caption = decode_text(raw.text or b"").strip() or None
        error = None if isinstance(meta, dict) else SampleError("json damaged", "no object")
    except (ValueError, RecursionError) as problem:
        meta, caption, error = {}, None, SampleError("text damaged", str(problem)[:100])
    meta = meta if isinstance(meta, dict) else {}
    licence = meta.get("licence") or meta.get("license") or row["licence"]
    return Candidate(
        key=key,
        path=f"{utf8_of(row['path'])}::{raw.key}",
        source=str(meta.get("source") or row["source"]),
        licence=None if licence is None else str(licence),
        caption=caption,
        data=raw.image,
        meta=meta,
        error=error,
    )


def open_shard(folder: Path, entry: dict[str, Any]) -> ShardFolder:
    """Open the tar of a finished unit; `entry` is the shard entry in its statistics."""
    return ShardFolder(folder, [ShardEntry(**entry)])


def stored_pixels(data: bytes) -> np.ndarray:
    """Decode an image that the filter has normalised to (H, W, 3) uint8."""
    from open_supir.data.samples import ImageLimits, decode_training_image

    limits = ImageLimits(min_side=1, max_side=1 << 16, max_pixels=1 << 30)
    return decode_training_image(data, limits)
