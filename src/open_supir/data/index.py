"""Index of a tar: key, offset and size of each readable member, found without trusting the tar.

Only plain files in an uncompressed tar count, with an allow-listed suffix, a plain key and a
bounded size. The headers are walked one by one, because tarfile and webdataset silently stop at a
damaged header in the middle of an archive.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BLOCK = 512
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,128}")
MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# The kind of a member by its suffix, and the maximum size of each kind in bytes.
KINDS = dict.fromkeys(MEMBER_SUFFIXES, "image") | {"txt": "text", "json": "meta"}
SIZE_LIMITS = {"image": 32 << 20, "text": 16 << 10, "meta": 64 << 10}
MAX_NAME_RECORD = 16 << 10
MAX_EXAMPLES = 5
NAME_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class TarIndex:
    """What is readable in one tar, and what is not.

    `rows` is a structured array (key, then offset and size of image, text and meta; size 0 means
    absent) with one row per sample, in the order of the tar. `skipped` counts skips by reason;
    `examples` keeps the first names for each reason. `damage` says where and why the walk stopped
    early, or is None.
    """

    rows: np.ndarray
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    damage: str | None = None


def row_dtype(key_length: int) -> np.dtype:
    """Return the dtype of index rows with keys of up to `key_length` bytes."""
    fields: list[tuple[str, str]] = [("key", f"S{max(1, key_length)}")]
    for kind in SIZE_LIMITS:
        fields += [(f"{kind}_offset", "<i8"), (f"{kind}_size", "<i4")]
    return np.dtype(fields)


class TarDamage(ValueError):
    """The headers of a tar are damaged; what came before the damage is good."""


def index_tar(path: str | Path, *, max_examples: int | None = MAX_EXAMPLES) -> TarIndex:
    """Walk the headers of an uncompressed tar and index its samples.

    Memory and time are bounded by the number of headers: the only members read are long-name
    records, up to 16 KiB each. `max_examples` names are kept for each reason; None keeps all.
    """
    collector, damage = _Collector(max_examples), None
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        end = os.fstat(fd).st_size
        try:
            for name, offset, size in walk_members(
                lambda start, count: os.pread(fd, count, start), collector.skip, end=end
            ):
                collector.add(name, offset, size)
        except TarDamage as error:
            damage = str(error)
    return collector.finish(damage)


class _Collector:
    """Groups members by key and applies the rules for names, kinds and sizes."""

    def __init__(self, max_examples: int | None = MAX_EXAMPLES) -> None:
        self.max_examples = max_examples
        self.samples: dict[str, dict[str, tuple[int, int]]] = {}
        self.rejected: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        names = self.examples.setdefault(reason, [])
        if self.max_examples is None or len(names) < self.max_examples:
            names.append(name)

    def add(self, name: str, offset: int, size: int) -> None:
        key, _, suffix = name.removeprefix("./").partition(".")
        if not KEY_PATTERN.fullmatch(key):
            return self.skip("key not [A-Za-z0-9_-]{1,128}", name)
        kind = KINDS.get(suffix.lower())
        if kind is None:
            return self.skip("suffix not jpg, jpeg, png, webp, txt or json", name)
        members = self.samples.setdefault(key, {})
        if kind in members:
            self.rejected.setdefault(key, "duplicate member")
        elif size > SIZE_LIMITS[kind]:
            self.rejected.setdefault(key, f"{kind} larger than {SIZE_LIMITS[kind]} bytes")
        members[kind] = (offset, size)

    def finish(self, damage: str | None) -> TarIndex:
        for key, members in self.samples.items():
            if not members.get("image", (0, 0))[1]:
                self.rejected.setdefault(key, "no image")
        for key, reason in self.rejected.items():
            self.skip(reason, key)
        good = [(k, m) for k, m in self.samples.items() if k not in self.rejected]
        rows = np.zeros(len(good), row_dtype(max((len(k) for k, _ in good), default=1)))
        for row, (key, members) in zip(rows, good, strict=True):
            row["key"] = key.encode("ascii")
            for kind, (offset, size) in members.items():
                row[f"{kind}_offset"], row[f"{kind}_size"] = offset, size
        return TarIndex(rows, self.skipped, self.examples, damage)


def walk_members(
    read_at: Callable[[int, int], bytes],
    skip: Callable[[str, str], None],
    *,
    end: int | None = None,
) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of every plain file in an uncompressed tar.

    Args:
        read_at: Reads (offset, count); offsets only increase. A short read means end of file.
        skip: Called with (reason, name) for members that are not plain files.
        end: Size of the tar in bytes, if known.

    Raises:
        TarDamage: The tar is compressed, truncated or damaged.
    """
    offset, long_name, sparse = 0, None, False
    while header := read_at(offset, BLOCK):
        if not any(header):
            return _check_tail(read_at, offset)
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise TarDamage(_header_error(header, offset, error)) from error
        data = offset + BLOCK
        if info.size < 0 or (end is not None and data + info.size > end):
            raise TarDamage(f"truncated: member at byte {offset} reaches past the end of the file")
        if info.type in NAME_RECORDS:
            record = read_at(data, min(info.size, MAX_NAME_RECORD))
            name, resized, is_sparse = _extended(info, record)
            if resized:
                raise TarDamage(f"member over 8 GiB at byte {offset}: not supported")
            long_name, sparse = name or long_name, sparse or is_sparse
        else:
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not sparse:
                yield long_name or info.name, data, info.size
            elif info.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE):
                skip("not a plain file", long_name or info.name)
            long_name, sparse = None, False
        offset = data + -(-info.size // BLOCK) * BLOCK
    raise TarDamage("truncated: no end-of-archive block" if offset else "empty file")


def _extended(info: tarfile.TarInfo, record: bytes) -> tuple[str | None, bool, bool]:
    """Read a GNU or pax record; returns (name, whether it sets a size, whether it is sparse)."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return record.rstrip(b"\0").decode("utf-8", "surrogateescape"), False, False
    path = re.search(rb"\d+ path=([^\n]*)\n", record)
    name = path[1].decode("utf-8", "surrogateescape") if path else None
    return name, bool(re.search(rb"\d+ size=", record)), b" GNU.sparse." in record


def _check_tail(read_at: Callable[[int, int], bytes], offset: int) -> None:
    """Refuse anything but zeros after the end-of-archive block."""
    while chunk := read_at(offset, 1 << 20):
        if chunk.strip(b"\0"):
            raise TarDamage(f"data after the end-of-archive block at byte {offset}")
        offset += len(chunk)


def _header_error(header: bytes, offset: int, error: tarfile.HeaderError) -> str:
    if offset == 0:
        packed = next((name for magic, name in MAGICS.items() if header.startswith(magic)), None)
        return f"not an uncompressed tar ({packed or error})"
    return f"damaged header at byte {offset} ({error})"
