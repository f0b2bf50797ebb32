"""Shards: plain WebDataset tars, each with an index, and one manifest per folder.

A folder of shards holds `NAME.tar` (members `KEY.jpg|png|webp`, `KEY.txt`, `KEY.json`),
`NAME.index.npy` (see index.py) and `manifest.json`. Tars are written under a temporary name and
renamed; the manifest is written last, so a folder with a manifest is complete.
"""

import json
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from webdataset.writer import TarWriter

from open_supir.base.files import replacing, sha256_of, write_text
from open_supir.data.index import BLOCK, KEY_PATTERN, SIZE_LIMITS, TarIndex, index_tar
from open_supir.data.index_file import INDEX_SUFFIX, open_index, read_index
from open_supir.data.storage import MAX_OPEN, LocalFiles, StorageError, is_remote, open_files

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
CAPTION_BIN = 16
MAX_GAP = 64 << 10  # bytes between members that are worth reading to save a request


class RawSample(NamedTuple):
    """One sample as stored, neither decoded nor checked. Absent members are None."""

    key: str
    image: bytes
    text: bytes | None
    meta: bytes | None


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One sample to be written; `image` is an encoded JPEG, PNG or WebP file."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)

    def members(self) -> dict[str, Any]:
        """Return the WebDataset sample: suffix -> bytes."""
        if not KEY_PATTERN.fullmatch(self.key):
            raise ValueError(f"key must match {KEY_PATTERN.pattern}, got {self.key!r}")
        parts = {
            image_suffix(self.image): self.image,
            "txt": self.caption.encode("utf-8"),
            "json": json.dumps(self.meta, sort_keys=True, allow_nan=False).encode("utf-8"),
        }
        for kind, data in zip(("image", "text", "meta"), parts.values(), strict=True):
            if len(data) > SIZE_LIMITS[kind]:
                limit = SIZE_LIMITS[kind]
                raise ValueError(f"{self.key}: {kind} has {len(data)} bytes, limit {limit}")
        return {"__key__": self.key, **parts}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """The manifest's entry for one shard."""

    name: str
    count: int
    bytes: int
    sha256: str
    statistics: dict[str, Any] = field(default_factory=dict)


def image_suffix(data: bytes) -> str:
    """Return jpg, png or webp, by the magic bytes of an encoded image."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"not a JPEG, PNG or WebP file: starts with {data[:12]!r}")


def write_shard(path: str | Path, samples: Iterable[StoredSample]) -> ShardEntry:
    """Write one tar and its index, all or nothing; returns its manifest entry.

    The bytes depend only on the samples. An existing shard of that name is replaced.

    Raises:
        ValueError: A sample breaks the rules for keys, formats or sizes, or a key occurs twice.
    """
    path = Path(path)
    if path.suffix != ".tar" or not KEY_PATTERN.fullmatch(path.stem):
        raise ValueError(f"shard names must match [A-Za-z0-9_-]+.tar, got {path.name}")
    statistics = _Statistics()
    with replacing(path) as temporary:
        with open(temporary, "wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for sample in samples:
                writer.write(sample.members())
                statistics.add(sample)
        index = index_tar(temporary)
        if index.damage or index.skipped or len(index.rows) != statistics.count:
            reason = index.damage or dict(index.skipped)
            raise ValueError(f"{path.name}: the tar does not read back as written: {reason}")
        entry = describe_shard(temporary, index, name=path.name, statistics=statistics.summary())
        save_index(path, index)
    return entry


def write_shards(
    folder: str | Path, samples: Iterable[StoredSample], *, prefix: str, shard_size: int = 1000
) -> list[ShardEntry]:
    """Write `samples` in order as PREFIX-000000.tar ..., `shard_size` each, then the manifest."""
    folder, entries = Path(folder), []
    for number, batch in enumerate(_batches(iter(samples), shard_size)):
        entries.append(write_shard(folder / f"{prefix}-{number:06d}.tar", batch))
    write_manifest(folder, entries)
    return entries


def _batches(samples: Iterator[StoredSample], size: int) -> Iterator[list[StoredSample]]:
    while batch := list(islice(samples, size)):
        yield batch


def write_manifest(folder: str | Path, entries: Sequence[ShardEntry]) -> None:
    """Write a folder's `manifest.json`, sorted by shard name; a builder calls this last."""
    ordered = sorted(entries, key=lambda e: e.name)
    content = {"version": MANIFEST_VERSION, "shards": [asdict(e) for e in ordered]}
    write_text(Path(folder) / MANIFEST, json.dumps(content, indent=1))


def read_manifest(folder: str | Path, *, statistics: bool = True) -> list[ShardEntry]:
    """Read the manifest of a local folder or an fsspec address.

    Without `statistics`, 20,000 shards take 10 MB of memory instead of hundreds.

    Raises:
        FileNotFoundError: The folder or its manifest does not exist.
        ValueError: The manifest is damaged, has another version, or lists no samples.
    """
    path = f"{folder}/{MANIFEST}"
    try:
        data = open_files(folder).read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        root, hint = Path(folder).parent, ""
        if not is_remote(folder) and Path(folder).is_dir():
            hint = f"; python -m src.check {quote(f'data.root={root}')} writes it"
        elif not is_remote(folder) and root.is_dir():
            held = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir()))
            hint = f"; {root} has the folders: {held or 'none'}"
        raise FileNotFoundError(f"no {MANIFEST} in {folder}{hint}") from error
    try:
        content = json.loads(data, object_hook=None if statistics else _without_statistics)
        if content["version"] != MANIFEST_VERSION:
            raise ValueError(f"version {content['version']}, expected {MANIFEST_VERSION}")
        entries = [ShardEntry(**entry) for entry in content["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged manifest ({error})") from error
    if any(not KEY_PATTERN.fullmatch(e.name.removesuffix(".tar")) for e in entries):
        raise ValueError(f"{path}: a shard name does not match [A-Za-z0-9_-]+.tar")
    entries = [e for e in entries if e.count > 0]
    if not entries:
        raise ValueError(f"{path}: no samples in this folder")
    return entries


def _without_statistics(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "statistics"}


def describe_shard(
    path: str | Path, index: TarIndex, *, name: str, statistics: dict[str, Any]
) -> ShardEntry:
    """Make the manifest entry of a finished tar; size and sha256 come from the file."""
    path = Path(path)
    return ShardEntry(
        name=name,
        count=len(index.rows),
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        statistics=statistics,
    )


def index_path(tar: str | Path) -> Path:
    """Return the path of the index of `tar`."""
    return Path(tar).with_suffix(INDEX_SUFFIX)


def save_index(tar: str | Path, index: TarIndex) -> None:
    """Write the index of `tar` next to it."""
    with replacing(index_path(tar)) as temporary, open(temporary, "wb") as file:
        np.save(file, index.rows, allow_pickle=False)


def load_index(tar: str | Path, *, count: int) -> np.ndarray:
    """Read the index of a local `tar`, which must have `count` rows of 36 bytes and the key."""
    return read_index(LocalFiles(Path(tar).parent), Path(tar).name, count)


class ShardFolder:
    """Random access to the samples of one folder, local or remote, through the indexes.

    At most `max_open` files stay open.
    """

    def __init__(
        self, folder: str | Path, entries: Sequence[ShardEntry], *, max_open: int = MAX_OPEN
    ) -> None:
        self.folder, self.entries, self.max_open = folder, list(entries), max_open
        # Arrays, because reading a list of objects makes every worker copy its pages.
        self._names = np.array([entry.name.encode() for entry in entries], dtype="S")
        self._counts = np.array([entry.count for entry in entries], dtype=np.int64)
        self.files = open_files(folder)
        if isinstance(self.files, LocalFiles):
            self.files.max_open = max_open
        self._indexes: OrderedDict[int, Callable[[int], np.void]] = OrderedDict()

    def read(self, shard: int, sample: int) -> RawSample:
        """Read sample number `sample` of shard number `shard`.

        Raises:
            StorageError: The tar or its index cannot be read, after retries.
        """
        row, name = self._index(shard)(sample), self.name(shard)
        places = {
            kind: (int(row[f"{kind}_offset"]), min(int(row[f"{kind}_size"]), limit))
            for kind, limit in SIZE_LIMITS.items()
            if row[f"{kind}_offset"]
        }
        start, end = min(o for o, _ in places.values()), max(o + s for o, s in places.values())
        try:
            if (
                self.files.per_request
                and end - start <= sum(s for _, s in places.values()) + MAX_GAP
            ):
                data = self.files.read_at(name, start, end - start)
                parts = {kind: data[o - start : o - start + s] for kind, (o, s) in places.items()}
            else:
                parts = {kind: self.files.read_at(name, *place) for kind, place in places.items()}
        except FileNotFoundError as error:
            raise StorageError(f"{self.folder}/{name}: cannot open the shard ({error})") from error
        key = row["key"].decode("ascii", "replace")
        return RawSample(key, parts["image"], parts.get("text"), parts.get("meta"))

    def name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return self._names[shard].decode()

    def key(self, shard: int, sample: int) -> str:
        """Return the key of a sample without reading it."""
        return self._index(shard)(sample)["key"].decode("ascii", "replace")

    def check_sizes(self) -> None:
        """Compare the size of every tar with that in the manifest.

        Raises:
            StorageError: A tar is missing or has another size.
        """
        sizes = self.files.sizes()
        for entry in self.entries:
            size = sizes.get(entry.name)
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise StorageError(
                    f"{self.folder}/{entry.name} {found}, the manifest says {entry.bytes} bytes"
                )

    def check_indexes(self, *, limit: int = 100) -> None:
        """Check the last sample's header in every 100th shard, in at least one and at most `limit`.

        Raises:
            StorageError: An index does not match its tar.
        """
        count = min(limit, -(-len(self.entries) // 100))
        for shard in np.linspace(0, len(self.entries) - 1, count, dtype=int).tolist():
            row, name = self._index(shard)(int(self._counts[shard]) - 1), self.name(shard)
            offset, size = int(row["image_offset"]), int(row["image_size"])
            header = self.files.read_at(name, max(0, offset - BLOCK), BLOCK)
            try:
                found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                found = tarfile.TarInfo()
            # Long names have a record of their own and are truncated in the header.
            stem, key = found.name.removeprefix("./").partition(".")[0], row["key"].decode("ascii")
            if found.size != size or (len(key) < 90 and stem != key):
                raise StorageError(
                    f"{self.folder}/{name}: sample {key!r} is not where the index says; "
                    f"delete the index, then run python -m src.check to rebuild it"
                )

    def _index(self, shard: int) -> Callable[[int], np.void]:
        if shard in self._indexes:
            self._indexes.move_to_end(shard)
            return self._indexes[shard]
        try:
            index = open_index(self.files, self.name(shard), int(self._counts[shard]))
        except StorageError as error:
            raise StorageError(f"{self.folder}/{error}") from error
        self._indexes[shard] = index
        if len(self._indexes) > self.max_open:
            self._indexes.popitem(last=False)
        return index

    def close(self) -> None:
        """Close every open file."""
        self.files.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict()}


class _Statistics:
    """Collects the statistics of a shard for the manifest."""

    def __init__(self) -> None:
        self.count = 0
        self.image_bytes: list[int] = []
        self.caption_words: dict[int, int] = {}
        self.scores: dict[str, list[float]] = {}

    def add(self, sample: StoredSample) -> None:
        self.count += 1
        self.image_bytes.append(len(sample.image))
        start = len(sample.caption.split()) // CAPTION_BIN * CAPTION_BIN
        self.caption_words[start] = self.caption_words.get(start, 0) + 1
        for name, value in sample.meta.get("scores", {}).items():
            self.scores.setdefault(name, []).append(float(value))

    def summary(self) -> dict[str, Any]:
        sizes = self.image_bytes or [0]
        return {
            "image_bytes": {"min": min(sizes), "mean": sum(sizes) // len(sizes), "max": max(sizes)},
            "caption_words": {str(k): v for k, v in sorted(self.caption_words.items())},
            "scores": {
                name: {"min": min(v), "mean": sum(v) / len(v)} for name, v in self.scores.items()
            },
        }
