"""The data plan of a run: which shards, in what proportion, and whether that has changed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_supir.data.dataset import SourceConfig
from open_supir.data.order import BLOCK_SHARDS, CYCLE, Mixture, SourceOrder, nested_fraction
from open_supir.data.pair_source import PAIRS, PairFolder
from open_supir.data.shards import ShardEntry, ShardFolder, read_manifest
from open_supir.data.storage import below


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """The order and storage of every source.

    `shards` maps each source's shard numbers in its order to those in its folder.
    """

    mixture: Mixture
    folders: Sequence[ShardFolder | PairFolder]
    shards: Sequence[np.ndarray]
    settings: Mapping[str, Any]

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that determines the order, as plain values to compare."""
        values = dict(self.settings)
        for i, order in enumerate(self.mixture.sources):
            entries = [self.folders[i].entries[s] for s in self.shards[i]]
            listing = "\n".join(f"{e.name} {e.count} {e.sha256}" for e in entries)
            values[f"sources.{order.name}.quota"] = int(self.mixture.quotas[i])
            values[f"sources.{order.name}.samples"] = order.size
            values[f"sources.{order.name}.shards"] = hashlib.sha256(listing.encode()).hexdigest()
        return values


def make_plan(
    root: str | Path,
    sources: Mapping[str, SourceConfig],
    *,
    seed: int,
    global_batch: int,
    fraction: float = 1.0,
    cycle: int = CYCLE,
    block_shards: int = BLOCK_SHARDS,
    check: bool = True,
    pairs: PairFolder | None = None,
) -> DataPlan:
    """Read the manifests below `root` and plan the order; source "pairs" is `pairs`, if given.

    Raises:
        FileNotFoundError: A folder or a manifest is missing.
        ValueError: A manifest is damaged or lists no samples, or a weight is out of range.
        StorageError: With `check`, a tar is missing or does not match its manifest or index.
    """
    orders, folders, shards = [], [], []
    for name, config in sources.items():
        if name == PAIRS and pairs is not None:
            orders.append(SourceOrder(name, [pairs.entries[0].count], block=1, seed=seed))
            folders.append(pairs)
            shards.append(np.zeros(1, dtype=np.int64))
            continue
        path = below(root, config.folder or name)
        entries = _entries(name, path)
        chosen = nested_fraction([entry.name for entry in entries], fraction)
        folder = ShardFolder(path, entries)
        if check:
            folder.check_sizes()
            folder.check_indexes()
        counts = [entries[i].count for i in chosen]
        orders.append(SourceOrder(name, counts, block=block_shards, seed=seed))
        folders.append(folder)
        shards.append(np.array(chosen))
    weights = [config.weight for config in sources.values()]
    settings = {
        "seed": seed,
        "global_batch": global_batch,
        "fraction": fraction,
        "cycle": cycle,
        "block_shards": block_shards,
    }
    mixture = Mixture(orders, weights, seed=seed, cycle=cycle)
    return DataPlan(mixture=mixture, folders=folders, shards=shards, settings=settings)


def _entries(source: str, path: str | Path) -> list[ShardEntry]:
    """Read a source's manifest; an error names the source and the key that switches it off."""
    try:
        return read_manifest(path, statistics=False)
    except (FileNotFoundError, ValueError) as error:
        switch = f"source {source}: {error}; without this source: data.sources.{source}=null"
        raise type(error)(switch) from error


def plan_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the differences between two fingerprints, as "key: old -> new"."""
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
