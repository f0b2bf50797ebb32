"""Properties of the order over many topologies: what is read, by whom, and where a run resumes.

Worlds 1 to 8, workers 0 to 4, several micro-batches and 1 to 37 shards of unequal size, with real
DataLoaders; the samples here are places alone, so that all combinations take seconds.
"""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from open_supir.data import CaptionPolicy, CropPolicy, SourceConfig
from open_supir.data.counters import LoaderCounters, SkipLimits
from open_supir.data.dataset import SampleReader, ShardDataset
from open_supir.data.order import Mixture, Place, SourceOrder, StepSampler
from open_supir.data.plan import make_plan
from open_supir.data.samples import ImageLimits
from open_supir.data.shards import StoredSample, write_manifest, write_shard
from tests.data.made import jpeg

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

GLOBAL_BATCH, CYCLE, WEIGHTS = 840, 70, (50, 15, 5)  # 840 is a multiple of 1 to 8


def mixture(shards: int) -> Mixture:
    rng = random.Random(shards)
    sizes = {"main": shards, "faces": max(1, shards // 3), "negatives": 1}
    orders = [
        SourceOrder(name, [rng.randint(1, 30) for _ in range(count)], block=4, seed=5)
        for name, count in sizes.items()
    ]
    return Mixture(orders, WEIGHTS, seed=5, cycle=CYCLE)


def micro_batches(world: int) -> list[int]:
    """All that divide the share of a rank, but the smallest, which make many messages."""
    share = GLOBAL_BATCH // world
    return [m for m in range(5, share + 1) if share % m == 0]


class Places(Dataset[tuple[int, Place]]):
    """The place of each position, as (position, place)."""

    def __init__(self, order: Mixture) -> None:
        self.order = order

    def __getitem__(self, position: int) -> tuple[int, Place]:
        return position, self.order.locate(position)


def steps(
    order: Mixture, *, world: int, micro: int, workers: int, start: int = 0
) -> Iterator[list[list[tuple[int, Place]]]]:
    """Yield, for each step, what each rank reads, from step `start` on."""
    loaders = [
        iter(
            DataLoader(
                Places(order),
                batch_sampler=StepSampler(
                    start * GLOBAL_BATCH,
                    global_batch=GLOBAL_BATCH, micro_batch=micro, rank=rank, world=world,
                ),
                num_workers=workers,
                collate_fn=list,
            )
        )
        for rank in range(world)
    ]  # fmt: skip
    accumulation = GLOBAL_BATCH // (world * micro)
    while True:
        yield [[item for _ in range(accumulation) for item in next(loader)] for loader in loaders]


def straight(order: Mixture, start: int, count: int) -> list[list[tuple[int, Place]]]:
    """The global batches by definition: positions in turn."""
    return [
        [(p, order.locate(p)) for p in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)]
        for step in range(start, start + count)
    ]


TOPOLOGIES = [  # the largest start 15 to 32 processes each
    pytest.param(world, workers, marks=pytest.mark.slow if world > 4 and workers > 2 else ())
    for world in range(1, 9)
    for workers in range(5)
]


@pytest.mark.parametrize(("world", "workers"), TOPOLOGIES)
def test_every_topology_reads_the_same_disjoint_global_batches(world: int, workers: int) -> None:
    """And resumes at any step from any other: the state is the step alone."""
    rng = random.Random(world * 10 + workers)
    order = mixture(rng.randint(1, 37))
    micro, start = rng.choice(micro_batches(world)), rng.randint(0, 50)
    ranks = steps(order, world=world, micro=micro, workers=workers, start=start)
    for want in straight(order, start, 2):
        parts = next(ranks)
        positions = [p for part in parts for p, _ in part]
        assert len(set(positions)) == len(positions) == GLOBAL_BATCH  # disjoint over ranks
        assert sorted(item for part in parts for item in part) == want


@pytest.mark.parametrize("shards", range(1, 38))
def test_every_source_is_covered_once_an_epoch_and_to_its_quota(shards: int) -> None:
    """Read by several ranks, every sample of every source comes once before any comes again."""
    rng = random.Random(shards)
    order, world = mixture(shards), rng.choice([1, 2, 3, 4, 5, 6, 7, 8])
    sources: list[list[tuple[int, int]]] = [[] for _ in WEIGHTS]
    count = 0
    for parts in steps(order, world=world, micro=GLOBAL_BATCH // world, workers=0):
        for _, place in sorted(item for part in parts for item in part):
            sources[place.source].append((place.shard, place.sample))
        count += 1
        if all(len(s) >= 2 * o.size for s, o in zip(sources, order.sources, strict=True)):
            break
    for seen, source, weight in zip(sources, order.sources, WEIGHTS, strict=True):
        assert len(seen) == count * GLOBAL_BATCH * weight // CYCLE  # exact: 12 cycles a step
        everything = {(s, i) for s, n in enumerate(source.counts) for i in range(n)}
        for epoch in range(len(seen) // source.size):
            part = seen[epoch * source.size : (epoch + 1) * source.size]
            assert set(part) == everything


@pytest.mark.parametrize("seed", range(3))
def test_chain_of_resumes_on_random_topologies_equals_the_straight_run(seed: int) -> None:
    rng = random.Random(seed)
    order = mixture(rng.randint(1, 37))
    step, end = 0, 9
    while step < end:
        world, workers = rng.randint(1, 8), rng.choice([0, 0, 1, 2])
        micro = rng.choice(micro_batches(world))
        count = min(end - step, rng.randint(1, 4))
        ranks = steps(order, world=world, micro=micro, workers=workers, start=step)
        for want in straight(order, step, count):
            assert sorted(item for part in next(ranks) for item in part) == want
        step += count


def dataset(root: Path, order_seed: int) -> ShardDataset:
    sources = {"main": SourceConfig(weight=1)}
    plan = make_plan(root, sources, seed=order_seed, global_batch=8, cycle=10, block_shards=3)
    reader = SampleReader(
        crop_size=32, crop=CropPolicy(), captions=CaptionPolicy(), seed=order_seed,
        limits=ImageLimits(min_side=32),
    )  # fmt: skip
    counters = LoaderCounters(["main"], path=None, limits=SkipLimits(rate=1.0, window=10**6))
    return ShardDataset(
        plan.mixture, plan.folders, list(sources.values()), reader, counters, shards=plan.shards
    )


@pytest.mark.parametrize("seed", range(4))
def test_one_bad_sample_never_shifts_another(tmp_path: Path, seed: int) -> None:
    """Any one sample spoilt: only the positions that held it change, to a sample of its block."""
    rng = random.Random(seed)
    counts = [rng.randint(2, 9) for _ in range(rng.randint(2, 8))]
    good = jpeg(0, 48, 48)
    spoilt = (shard := rng.randrange(len(counts)), rng.randrange(counts[shard]))
    for name in ("good", "bad"):
        entries = []
        for s, count in enumerate(counts):
            samples = [
                StoredSample(
                    key=f"k{s}-{i}", caption="c",
                    image=good[:500] if name == "bad" and (s, i) == spoilt else good,
                )
                for i in range(count)
            ]  # fmt: skip
            entries.append(write_shard(tmp_path / name / "main" / f"s{s}.tar", samples))
        write_manifest(tmp_path / name / "main", entries)
    clean, dirty = dataset(tmp_path / "good", seed), dataset(tmp_path / "bad", seed)
    victim, changed = f"k{spoilt[0]}-{spoilt[1]}", 0
    for position in range(3 * sum(counts)):
        a, b = clean[position], dirty[position]
        if a["key"] == victim:
            assert b["key"] != victim
            changed += 1
        else:
            assert a["key"] == b["key"] and a["caption"] == b["caption"]
            assert torch.equal(torch.from_numpy(a["hq"]), torch.from_numpy(b["hq"]))
    assert changed == 3 and Counter(dirty.counters.skipped()) == {"main/damaged image": 3}
