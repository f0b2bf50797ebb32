"""The order of training data: coverage, exact shares, and no dependence on the topology."""

import pickle
import random
from collections import Counter

import pytest

from open_supir.data.order import (
    Mixture,
    SourceOrder,
    StepSampler,
    exact_quotas,
    nested_fraction,
)


def source(counts: list[int], *, block: int = 4, seed: int = 1, name: str = "main") -> SourceOrder:
    return SourceOrder(name, counts, block=block, seed=seed)


@pytest.mark.parametrize("shards", [1, 2, 3, 8, 37])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_every_epoch_visits_every_sample_once(shards: int, block: int) -> None:
    rng = random.Random(shards)
    counts = [rng.randint(1, 40) for _ in range(shards)]
    order = source(counts, block=block)
    everything = {(shard, i) for shard, count in enumerate(counts) for i in range(count)}
    for epoch in range(3):
        places = [order.locate(epoch * order.size + i) for i in range(order.size)]
        assert {p[0] for p in places} == {epoch}
        assert len(places) == len(everything)
        assert {p[1:] for p in places} == everything


def test_epochs_seeds_and_names_differ() -> None:
    counts = [20] * 8
    orders = [source(counts), source(counts, seed=2), source(counts, name="other")]
    lists = [[o.locate(i)[1:] for i in range(160)] for o in orders]
    lists.append([orders[0].locate(i)[1:] for i in range(160, 320)])
    assert all(a != b for i, a in enumerate(lists) for b in lists[:i])


def test_samples_stay_in_blocks_of_shards() -> None:
    order = source([10] * 12, block=3)
    shards = [order.locate(i)[1] for i in range(120)]
    blocks = [set(shards[i : i + 30]) for i in range(0, 120, 30)]
    assert all(len(block) == 3 for block in blocks) and len(set.union(*blocks)) == 12


@pytest.mark.parametrize("size", [1, 2, 7919, 8000])
def test_neighbours_are_distinct_until_the_block_is_used_up(size: int) -> None:
    order = source([size])
    places = {order.locate(0, attempt) for attempt in range(min(size, 8))}
    assert len(places) == min(size, 8)


def mixture(seed: int = 1) -> Mixture:
    sources = [
        SourceOrder("main", [7, 30, 12, 25, 1, 9], block=2, seed=seed),
        SourceOrder("faces", [11, 5], block=8, seed=seed),
        SourceOrder("negatives", [3], block=8, seed=seed),
    ]
    return Mixture(sources, [0.9, 0.06, 0.04], seed=seed, cycle=100)


def test_every_cycle_holds_exact_quotas() -> None:
    mix = mixture()
    for cycle in range(5):
        ids = [mix.locate(100 * cycle + i).source for i in range(100)]
        assert Counter(ids) == {0: 90, 1: 6, 2: 4}


def test_every_source_is_visited_in_its_own_order() -> None:
    """No sample of a source is lost or repeated between cycles."""
    mix = mixture()
    by_source: dict[int, list] = {0: [], 1: [], 2: []}
    for position in range(1000):
        place = mix.locate(position)
        by_source[place.source].append(place[1:])
    for i, order in enumerate(mix.sources):
        assert by_source[i] == [order.locate(k) for k in range(len(by_source[i]))]


def test_quotas_follow_largest_remainders() -> None:
    assert exact_quotas(["a", "b", "c"], [1, 1, 1], 10).tolist() == [4, 3, 3]
    # Exact shares 9915.72, 34.71, 49.58: the two positions left go to the first two.
    assert exact_quotas("abc", [20e6, 70e3, 100e3], 10_000).tolist() == [9916, 35, 49]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [float("nan"), 1], [1, 1e-6]])
def test_quotas_refuse_impossible_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError):
        exact_quotas(["a", "b"], weights, 100)


def global_batches(world: int, micro: int, *, start: int, steps: int, batch: int) -> list[list]:
    """Positions of each step, put together from every rank's sampler."""
    ranks = [
        iter(StepSampler(start, global_batch=batch, micro_batch=micro, rank=r, world=world))
        for r in range(world)
    ]
    accumulate = batch // (world * micro)
    return [
        [p for _ in range(accumulate) for rank in ranks for p in next(rank)] for _ in range(steps)
    ]


@pytest.mark.parametrize("world", range(1, 9))
def test_global_batches_are_equal_for_every_topology(world: int) -> None:
    batch = 840
    straight = [list(range(step * batch, (step + 1) * batch)) for step in range(6)]
    for micro in (1, 3, 5, 15, 105):
        if batch % (world * micro):
            continue
        got = global_batches(world, micro, start=0, steps=3, batch=batch)
        assert got == straight[:3]
        resumed = global_batches(world, micro, start=4 * batch, steps=2, batch=batch)
        assert resumed == straight[4:]


def test_ranks_are_disjoint_within_a_step() -> None:
    parts = [
        next(iter(StepSampler(0, global_batch=24, micro_batch=8, rank=r, world=3)))
        for r in range(3)
    ]
    assert sorted(p for part in parts for p in part) == list(range(24))


def test_sampler_refuses_what_would_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple"):
        StepSampler(0, global_batch=16, micro_batch=3)
    with pytest.raises(ValueError, match="consumed"):
        StepSampler(5, global_batch=16, micro_batch=4)


def test_order_survives_pickling() -> None:
    mix = mixture()
    copy = pickle.loads(pickle.dumps(mix))
    assert [copy.locate(p) for p in range(300)] == [mix.locate(p) for p in range(300)]


def test_order_is_pinned() -> None:
    """The order of old runs must not change between versions of this code or of numpy."""
    places = [tuple(mixture().locate(p)) for p in (0, 1, 99, 100, 12_345)]
    assert places == PINNED


PINNED = [(0, 0, 5, 3), (0, 0, 0, 3), (0, 1, 1, 8), (0, 1, 1, 11), (2, 164, 0, 0)]


def test_fractions_are_nested_and_seedless() -> None:
    names = [f"shard-{i:04d}.tar" for i in range(200)]
    small, middle, whole = (nested_fraction(names, f) for f in (0.01, 0.1, 1.0))
    assert (len(small), len(middle), len(whole)) == (2, 20, 200)
    assert set(small) < set(middle) < set(whole)
    assert nested_fraction(["only.tar"], 0.001) == [0]
    with pytest.raises(ValueError):
        nested_fraction(names, 0)
