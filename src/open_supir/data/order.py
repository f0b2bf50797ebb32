"""The order of training data as a pure function: position -> (source, shard, sample).

Position p = 0, 1, 2, ... counts the samples that a run has consumed. In each cycle of positions,
every source occurs exactly in proportion to its weight. Within a source, shards are permuted per
epoch, and samples within blocks of shards. Nothing depends on ranks, workers or micro-batches, so
the state of the data is the integer `consumed`, and every topology with the same global batch sees
the same global batches.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from open_supir.base.rng import keyed_hash, keyed_rng

CYCLE = 10_000
BLOCK_SHARDS = 64
NEIGHBOUR_STRIDE = 7919  # prime: steps through a whole block unless the block is a multiple of it


class Place(NamedTuple):
    """The location of a sample: source number, epoch, shard in the source, sample in the shard."""

    source: int
    epoch: int
    shard: int
    sample: int


class SourceOrder:
    """The endless order of one source: index i -> (epoch, shard, sample).

    Each epoch visits every sample once. The working set is one block of shards, which is also the
    shuffle window.
    """

    def __init__(self, name: str, counts: Sequence[int], *, block: int, seed: int) -> None:
        self.name, self.block, self.seed = name, block, seed
        self.counts = np.asarray(counts, dtype=np.int64)
        if len(self.counts) == 0 or self.counts.min() < 1 or block < 1:
            raise ValueError(f"source {name!r} needs shards of at least one sample and block >= 1")
        self.size = int(self.counts.sum())
        self._epoch = functools.lru_cache(4)(self._permute_shards)
        self._block = functools.lru_cache(4)(self._permute_block)

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the shard order, the first index of each shard, and the edges of the blocks."""
        order = keyed_rng(self.seed, self.name, "shards", epoch).permutation(len(self.counts))
        starts = np.concatenate([[0], np.cumsum(self.counts[order])])
        return order, starts, np.append(starts[:-1][:: self.block], starts[-1])

    def _permute_block(self, epoch: int, block: int) -> np.ndarray:
        edges = self._epoch(epoch)[2]
        size = int(edges[block + 1] - edges[block])
        order = keyed_rng(self.seed, self.name, "block", epoch, block).permutation(size)
        return order.astype(np.uint32)  # half the memory, in every worker

    def locate(self, index: int, attempt: int = 0) -> tuple[int, int, int]:
        """Find (epoch, shard, sample) of `index`; `attempt` > 0 gives others from its block."""
        epoch, rest = divmod(index, self.size)
        order, starts, edges = self._epoch(epoch)
        block = int(np.searchsorted(edges, rest, "right")) - 1
        first, size = int(edges[block]), int(edges[block + 1] - edges[block])
        stride = NEIGHBOUR_STRIDE if size % NEIGHBOUR_STRIDE else 1
        place = first + int(self._block(epoch, block)[(rest - first + attempt * stride) % size])
        slot = int(np.searchsorted(starts, place, "right")) - 1
        return epoch, int(order[slot]), place - int(starts[slot])

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_epoch", "_block")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(4)(self._permute_shards)
        self._block = functools.lru_cache(4)(self._permute_block)


class Mixture:
    """Several sources in exact proportion: position -> Place."""

    def __init__(
        self,
        sources: Sequence[SourceOrder],
        weights: Sequence[float],
        *,
        seed: int,
        cycle: int = CYCLE,
    ) -> None:
        self.sources, self.seed, self.cycle = list(sources), seed, cycle
        self.quotas = exact_quotas([s.name for s in sources], weights, cycle)
        self._pattern = functools.lru_cache(4)(self._permute_cycle)

    def _permute_cycle(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position of a cycle, and its rank within that source."""
        ids = np.repeat(np.arange(len(self.quotas)), self.quotas)
        ids = ids[keyed_rng(self.seed, "mixture", number).permutation(self.cycle)]
        ranks = np.empty(self.cycle, dtype=np.int64)
        for source, quota in enumerate(self.quotas):
            ranks[ids == source] = np.arange(quota)
        return ids, ranks

    def locate(self, position: int, attempt: int = 0) -> Place:
        """Find the sample at `position`; `attempt` > 0 gives replacements from the same block."""
        number, rest = divmod(position, self.cycle)
        ids, ranks = self._pattern(number)
        source = int(ids[rest])
        index = number * int(self.quotas[source]) + int(ranks[rest])
        return Place(source, *self.sources[source].locate(index, attempt))

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_pattern"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._pattern = functools.lru_cache(4)(self._permute_cycle)


def exact_quotas(names: Sequence[str], weights: Sequence[float], cycle: int) -> np.ndarray:
    """Divide `cycle` positions among the sources by weight, largest remainders first.

    Raises:
        ValueError: A weight is not positive, or too small for one position per cycle.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if len(shares) == 0 or not np.all(np.isfinite(shares)) or shares.min() <= 0:
        raise ValueError(f"source weights must be positive, got {list(weights)}")
    exact = shares / shares.sum() * cycle
    quotas = np.floor(exact).astype(np.int64)
    for source in np.argsort(quotas - exact, kind="stable")[: cycle - int(quotas.sum())]:
        quotas[source] += 1
    if quotas.min() < 1:
        name = names[int(quotas.argmin())]
        raise ValueError(
            f"source {name!r} gets less than one position in a cycle of {cycle}; raise its weight"
        )
    return quotas


def nested_fraction(names: Sequence[str], fraction: float) -> list[int]:
    """Choose a fraction of the shards; smaller fractions are subsets of larger ones.

    The choice depends only on the names, so that runs with different seeds use the same data.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    ranked = sorted(range(len(names)), key=lambda i: keyed_hash("fraction", names[i]))
    return sorted(ranked[: max(1, round(fraction * len(names)))])


class StepSampler(Sampler[list[int]]):
    """Endless batch sampler of one rank: lists of positions, starting at `consumed`.

    Step t takes positions [t * global_batch, (t + 1) * global_batch), split into micro-batches over
    accumulation steps and ranks.
    """

    def __init__(
        self, consumed: int, *, global_batch: int, micro_batch: int, rank: int = 0, world: int = 1
    ) -> None:
        if micro_batch < 1 or global_batch < 1 or global_batch % (world * micro_batch):
            raise ValueError(
                f"global_batch {global_batch} must be a multiple of {world} ranks x micro_batch "
                f"{micro_batch}"
            )
        if consumed < 0 or consumed % global_batch:
            raise ValueError(
                f"consumed {consumed} is not a multiple of global_batch {global_batch}"
            )
        self.consumed, self.global_batch, self.micro_batch = consumed, global_batch, micro_batch
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        start = self.consumed
        while True:
            for accumulation in range(self.global_batch // (self.world * self.micro_batch)):
                first = start + (accumulation * self.world + self.rank) * self.micro_batch
                yield list(range(first, first + self.micro_batch))
            start += self.global_batch
