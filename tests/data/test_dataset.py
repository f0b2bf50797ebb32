"""Position -> sample: bad samples are replaced by rule, counted, and move nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from open_supir.data.captions import CaptionPolicy
from open_supir.data.counters import LoaderCounters, SkipLimits
from open_supir.data.dataset import (
    SampleReader,
    ShardDataset,
    SourceConfig,
    position_seed,
    read_caption,
    read_meta,
)
from open_supir.data.order import StepSampler
from open_supir.data.plan import make_plan
from open_supir.data.samples import CropPolicy, ImageLimits, SampleError, collate
from open_supir.data.shards import StorageError, StoredSample, write_manifest, write_shard
from tests.data.made import jpeg, pixels, shard_folder

SOURCES = {"main": SourceConfig(weight=0.8), "neg": SourceConfig(weight=0.2, is_negative=True)}


def dataset(
    root: Path, *, sources=None, seed: int = 0, log: Path | None = None, limits=None
) -> ShardDataset:
    sources = sources or SOURCES
    plan = make_plan(root, sources, seed=seed, global_batch=8, cycle=20)
    reader = SampleReader(
        crop_size=32,
        crop=CropPolicy(),
        captions=CaptionPolicy(),
        seed=seed,
        limits=ImageLimits(min_side=32),
    )
    counters = LoaderCounters(list(sources), path=log, limits=limits)
    configs = list(sources.values())
    return ShardDataset(plan.mixture, plan.folders, configs, reader, counters, shards=plan.shards)


def write_source(folder: Path, bad: set[int], count: int = 30, image: bytes = b"") -> None:
    """One shard of `count` samples, of which those in `bad` are truncated JPEGs."""
    samples = [
        StoredSample(
            key=f"k{i:03d}",
            image=jpeg(i)[: 900 if i in bad else None] if not image else image,
            caption=f"number {i}",
        )
        for i in range(count)
    ]
    write_manifest(folder, [write_shard(folder / "s.tar", samples)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shard_folder(tmp_path / "main", [7, 12, 3, 9], prefix="m")
    shard_folder(tmp_path / "neg", [4], prefix="n")
    return tmp_path


def test_a_sample_depends_on_seed_and_position_alone(root: Path) -> None:
    first, again, other = dataset(root), dataset(root), dataset(root, seed=1)
    for position in (5, 3, 40, 0):
        a, b = first[position], again[position]
        assert np.array_equal(a["hq"], b["hq"]) and np.array_equal(a["sizes"], b["sizes"])
        assert (a["key"], a["caption"], a["seed"]) == (b["key"], b["caption"], b["seed"])
    assert [first[p]["key"] for p in range(20)] != [other[p]["key"] for p in range(20)]
    assert first[3]["seed"] != other[3]["seed"]


def test_negative_source_gives_negative_samples(root: Path) -> None:
    samples = [dataset(root)[p] for p in range(20)]
    negatives = [s for s in samples if s["is_negative"]]
    assert len(negatives) == 4 and {s["source"] for s in negatives} == {"neg"}
    assert {s["caption"] for s in negatives} == {CaptionPolicy().negative_words}


def test_position_seeds_are_63_bit_and_distinct() -> None:
    seeds = {position_seed(0, p) for p in range(1000)} | {position_seed(1, p) for p in range(1000)}
    assert len(seeds) == 2000 and all(0 <= s < 2**63 for s in seeds) and max(seeds) > 2**61


def test_bad_samples_are_replaced_without_moving_others(tmp_path: Path) -> None:
    """Every position with a good sample reads the same with and without the bad ones."""
    bad = {3, 4, 5, 11, 20}
    source = {"main": SourceConfig(weight=1)}
    write_source(tmp_path / "good" / "main", set())
    write_source(tmp_path / "bad" / "main", bad)
    clean = dataset(tmp_path / "good", sources=source)
    dirty = dataset(tmp_path / "bad", sources=source, limits=SkipLimits(rate=1.0))
    moved = [p for p in range(30) if clean[p]["key"] != dirty[p]["key"]]
    assert len(moved) == len(bad)
    assert {clean[p]["key"] for p in moved} == {f"k{i:03d}" for i in bad}
    assert all(dirty[p]["key"] not in {f"k{i:03d}" for i in bad} for p in range(30))
    again = dataset(tmp_path / "bad", sources=source, limits=SkipLimits(rate=1.0))
    assert [again[p]["key"] for p in moved] == [dirty[p]["key"] for p in moved]


def test_skips_are_counted_and_written_with_reason_and_place(tmp_path: Path) -> None:
    write_source(tmp_path / "main", {3, 4})
    log = tmp_path / "logs" / "bad_samples.jsonl"
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)}, log=log)
    for position in range(30):
        data[position]
    skipped = data.counters.skipped()
    assert int(data.counters.samples.sum()) == 30 and list(skipped) == ["main/damaged image"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == skipped["main/damaged image"] >= 2
    assert {line["key"] for line in lines} == {"k003", "k004"}
    assert {line["shard"] for line in lines} == {"s.tar"}
    assert {line["reason"] for line in lines} == {"damaged image"}


def test_examples_in_the_log_are_capped(tmp_path: Path) -> None:
    write_source(tmp_path / "main", set(range(0, 30, 2)))
    log = tmp_path / "bad_samples.jsonl"
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)}, log=log)
    for position in range(120):
        data[position]
    assert sum(data.counters.skipped().values()) > 20
    assert len(log.read_text().splitlines()) == 20


def test_eight_bad_samples_in_a_row_stop_the_run(tmp_path: Path) -> None:
    write_source(tmp_path / "main", set(range(30)))
    with pytest.raises(StorageError, match="8 bad samples in a row at position 0"):
        dataset(tmp_path, sources={"main": SourceConfig(weight=1)})[0]


def test_too_many_skips_stop_the_run(tmp_path: Path) -> None:
    write_source(tmp_path / "main", {1, 2, 3})
    limits = SkipLimits(rate=0.01, window=20)
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)}, limits=limits)
    with pytest.raises(StorageError, match="more than 1.00% of 20"):
        for position in range(60):
            data[position]


def test_skips_are_limited_by_window_not_by_the_whole_run() -> None:
    """A burst after a million good samples stops the run; the same number spread out does not."""
    bad, where = SampleError("damaged image"), {"shard": "s", "key": "k"}
    limits = SkipLimits(rate=0.01, window=1000)
    spread = LoaderCounters(["main"], path=None, limits=limits)
    for _ in range(100):
        spread.samples[0] += 200
        spread.count_skip(0, bad, where)
    burst = LoaderCounters(["main"], path=None, limits=limits)
    burst.samples[0] += 1_000_000
    for _ in range(10):
        burst.count_skip(0, bad, where)
    with pytest.raises(StorageError, match="11 of the last"):
        burst.count_skip(0, bad, where)


def test_too_small_images_count_under_their_reason(tmp_path: Path) -> None:
    write_source(tmp_path / "main", set(), image=jpeg(0, 31, 31))
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)})
    with pytest.raises(StorageError, match="main/too small"):
        data[0]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_equal_for_every_number_of_workers(root: Path, workers: int) -> None:
    data = dataset(root)
    sampler = StepSampler(8, global_batch=8, micro_batch=4)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    batches = [batch for batch, _ in zip(loader, range(4), strict=False)]
    keys = [key for batch in batches for key in batch["key"]]
    assert keys == [data[p]["key"] for p in range(8, 24)]


def test_counters_add_up_over_workers(tmp_path: Path) -> None:
    write_source(tmp_path / "main", {3})
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)})
    sampler = StepSampler(0, global_batch=5, micro_batch=5)
    loader = DataLoader(
        data, batch_sampler=sampler, num_workers=2, collate_fn=collate, prefetch_factor=1
    )
    for _ in zip(loader, range(6), strict=False):
        pass
    assert int(data.counters.samples.sum()) >= 30
    assert data.counters.skipped()["main/damaged image"] >= 1


def test_caption_that_is_not_utf8_or_missing_is_bad() -> None:
    assert read_caption("caf\u00e9".encode(), "skip") == "caf\u00e9"
    assert read_caption(None, "empty") == "" and read_caption(b"  ", "empty") == ""
    for data, reason in (("caf\u00e9".encode("latin-1"), "UTF-8"), (None, "missing")):
        with pytest.raises(SampleError, match=reason):
            read_caption(data, "skip")


@pytest.mark.parametrize("data", [b"[" * 60_000, b"{", b"[]", b"3", b"\xff\xfe{}", b'"x"'])
def test_damaged_json_is_bad_and_deep_json_does_no_harm(data: bytes) -> None:
    with pytest.raises(SampleError, match="json damaged"):
        read_meta(data)


def test_json_may_mark_a_sample_negative(tmp_path: Path) -> None:
    sample = StoredSample(key="a", image=jpeg(), caption="x", meta={"is_negative": True})
    write_manifest(tmp_path / "main", [write_shard(tmp_path / "main" / "s.tar", [sample])])
    assert dataset(tmp_path, sources={"main": SourceConfig(weight=1)})[0]["is_negative"]


def test_pixels_come_from_the_stored_image(tmp_path: Path) -> None:
    """A crop found at its told place in the image, up to JPEG loss."""
    write_source(tmp_path / "main", set(), count=1)
    data = dataset(tmp_path, sources={"main": SourceConfig(weight=1)})
    policy = CropPolicy(native=1, area=0, whole=0, flip_prob=0, size_condition="actual")
    object.__setattr__(data.reader, "crop", policy)
    sample = data[0]
    top, left = int(sample["sizes"][2]), int(sample["sizes"][3])
    want = pixels(0)[top : top + 32, left : left + 32].astype(int)
    assert np.abs(sample["hq"] - want).mean() < 4
