"""The fallback reader: streams tars without an index, by webdataset with resampling.

It is for tars that do not allow random access. Source weights hold only on average, shards are
drawn with replacement, and a resumed run draws new samples. The rules for members are those of
indexed tars; urls are paths or fsspec addresses, and no shell is ever run.
"""

import functools
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import ResampledShards

from open_supir.base.rng import keyed_hash, keyed_rng
from open_supir.data.counters import LoaderCounters
from open_supir.data.dataset import SampleReader, SourceConfig
from open_supir.data.index import KEY_PATTERN, KINDS, SIZE_LIMITS, TarDamage, walk_members
from open_supir.data.samples import SampleError, TrainingSample
from open_supir.data.shards import RawSample
from open_supir.data.storage import StorageError, below, is_remote, open_files

log = logging.getLogger(__name__)

MAX_FAILURES = 8
APART = "caption or json without an image next to it; use reader=index, which needs no order"


class StreamDataset(IterableDataset[TrainingSample]):
    """Endless samples of several sources, read sequentially from whole tars."""

    def __init__(
        self,
        urls: Sequence[Sequence[str]],
        names: Sequence[str],
        configs: Sequence[SourceConfig],
        reader: SampleReader,
        counters: LoaderCounters,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        buffer: int = 1000,
    ) -> None:
        """Stream the `urls` of each source; `start` changes what a resumed run draws."""
        self.urls, self.names, self.configs = urls, list(names), list(configs)
        self.reader, self.counters, self.start = reader, counters, start
        self.rank, self.world, self.buffer = rank, world, buffer

    def __iter__(self) -> Iterator[TrainingSample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        lane, lanes = self.rank * workers + number, self.world * workers
        key = ("stream", self.reader.seed, self.start, lane)
        rng, weights = keyed_rng(*key), [config.weight for config in self.configs]
        odds = [weight / sum(weights) for weight in weights]
        streams = [
            raw_samples(
                urls,
                seed=keyed_hash(*key, i, size=4),
                buffer=self.buffer,
                report=functools.partial(self._count_refused, i),
            )
            for i, urls in enumerate(self.urls)
        ]
        count = failures = 0
        while True:
            source = int(rng.choice(len(streams), p=odds))
            url, raw = next(streams[source])
            try:
                position = self.start + count * lanes + lane
                sample, truncated = self.reader(
                    raw, self.names[source], self.configs[source], position
                )
            except SampleError as error:
                self.counters.count_skip(source, error, {"shard": url, "key": raw.key})
                failures += 1
                if failures > MAX_FAILURES:
                    raise StorageError(f"{failures} bad samples in a row near {url}") from error
                continue
            self.counters.count_sample(truncated=truncated)
            count, failures = count + 1, 0
            yield sample

    def _count_refused(self, source: int, url: str, reason: str, detail: str) -> None:
        self.counters.count_skip(source, SampleError(reason, detail), {"shard": url})


def raw_samples(
    urls: Sequence[str],
    *,
    seed: int,
    buffer: int,
    report: Callable[[str, str, str], None],
    open_url: Callable[[str], IO[bytes]] | None = None,
) -> Iterator[tuple[str, RawSample]]:
    """Yield (url, encoded sample) endlessly, from shards drawn with replacement and shuffled.

    `report(url, reason, detail)` is called for whatever is skipped.
    """
    for url in urls:
        check_url(url)
    shards = ResampledShards(list(urls), seed=seed, worker_seed=int, deterministic=True)
    read = _TarReader(open_url or open_plain, report)
    mix = shuffle(buffer, initial=min(buffer, 100), rng=random.Random(seed))
    return iter(DataPipeline(shards, read, mix))


def source_urls(root: str | Path, name: str, config: SourceConfig) -> list[str]:
    """List the tars of a source: its `urls`, or all tars in its folder.

    Raises:
        FileNotFoundError: There are no tars, or a local one is missing.
    """
    folder = below(root, config.folder or name)
    urls = list(config.urls or [])
    if not urls:
        try:
            names = sorted(name for name in open_files(folder).sizes() if name.endswith(".tar"))
        except FileNotFoundError:
            names = []
        urls = [str(below(folder, name)) for name in names]
    if not urls:
        raise FileNotFoundError(f"source {name!r}: no tars in {folder}")
    missing = [url for url in urls if not is_remote(url) and not Path(url).is_file()]
    if missing:
        raise FileNotFoundError(
            f"source {name!r}: {len(missing)} of {len(urls)} tars are missing, first: {missing[0]}"
        )
    return urls


def check_url(url: str) -> None:
    """Refuse addresses that would run a command or be rewritten."""
    if re.match(r"[A-Za-z][\w+.-]*:", url) and not re.match(r"[A-Za-z][\w+.-]*(::\w+)*://", url):
        raise ValueError(f"shard address {url!r}: only paths and scheme:// addresses are allowed")


def open_plain(url: str) -> IO[bytes]:
    """Open a local path, or an fsspec address, which needs fsspec."""
    if "://" not in url:
        return open(url, "rb")
    import fsspec  # only for object storage

    return fsspec.open(url, "rb").open()  # type: ignore[return-value]


class _TarReader:
    """Pipeline stage: {"url": ...} -> (url, RawSample); reads a damaged tar up to the damage."""

    def __init__(
        self, open_url: Callable[[str], IO[bytes]], report: Callable[[str, str, str], None]
    ) -> None:
        self.open_url, self.report = open_url, report

    def __call__(self, shards: Iterator[dict[str, Any]]) -> Iterator[tuple[str, RawSample]]:
        failures: dict[str, str] = {}
        count = 0
        for shard in shards:
            url, found, wrong = shard["url"], 0, "no samples"
            try:
                with self.open_url(url) as file:
                    for raw in tar_samples(file, functools.partial(self.report, url)):
                        found += 1
                        yield url, raw
            except (OSError, EOFError, TarDamage) as error:
                wrong = str(error)
                log.warning("%s: stopped after %d samples: %s", url, found, error)
                self.report(url, "damaged tar", f"stopped after {found} samples: {error}")
            failures, count = ({}, 0) if found else (failures | {url: wrong}, count + 1)
            if count > MAX_FAILURES:
                said = "; ".join(f"{name}: {why}" for name, why in failures.items())
                raise StorageError(f"{count} shards in a row have no samples: {said}")


def tar_samples(
    file: IO[bytes], refuse: Callable[[str, str], None] = lambda reason, detail: None
) -> Iterator[RawSample]:
    """Group the plain members of an uncompressed tar stream by key, as webdataset does.

    Members that break the rules for names, kinds and sizes are skipped unread; `refuse(reason,
    detail)` is called for those that deprive a sample of its image, caption or json, and for
    captions and json that do not stand next to their image.

    Raises:
        TarDamage: The tar is compressed, truncated or damaged; all samples before were yielded.
    """
    forward = _Forward(file)
    key, parts = "", {}
    for name, offset, size in walk_members(forward.read_at, _ignore):
        stem, _, suffix = name.removeprefix("./").partition(".")
        kind = KINDS.get(suffix.lower())
        if kind is None or not KEY_PATTERN.fullmatch(stem):
            if name.rpartition(".")[2].lower() in KINDS:
                refuse("member refused", f"key not [A-Za-z0-9_-]{{1,128}}: {name!r}")
            continue
        if stem != key:
            if "image" in parts:
                yield _raw(key, parts)
            elif parts:
                refuse("member refused", f"{key}: {APART}")
            key, parts = stem, {}
        if kind in parts or size > SIZE_LIMITS[kind]:
            refuse("member refused", f"{'twice' if kind in parts else f'{size} bytes'}: {name!r}")
        else:
            parts[kind] = forward.read_at(offset, size)
    if "image" in parts:
        yield _raw(key, parts)
    elif parts:
        refuse("member refused", f"{key}: {APART}")


class _Forward:
    """Reads a stream at increasing offsets; bytes in between are read and dropped."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.position = file, 0

    def read_at(self, offset: int, size: int) -> bytes:
        while self.position < offset:
            dropped = len(self.file.read(min(1 << 20, offset - self.position)))
            if not dropped:
                return b""
            self.position += dropped
        data = self.file.read(size)
        self.position += len(data)
        return data


def _ignore(reason: str, name: str) -> None:
    log.debug("skipped %r: %s", name, reason)


def _raw(key: str, parts: dict[str, bytes]) -> RawSample:
    return RawSample(key, parts["image"], parts.get("text"), parts.get("meta"))
