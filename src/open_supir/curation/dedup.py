"""Duplicates: images with nearly the same perceptual hash, and images of the evaluation sets.

Hashes have 64 bits; their distance is the number of differing bits. Twenty million take 160 MB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from open_supir.curation.step_settings import FilterSettings
from open_supir.curation.tables import write_rows
from open_supir.curation.thresholds import MEASURES, Thresholds, column, stored_rows
from open_supir.curation.work import Process, Unit

ROWS = pa.schema([(n, pa.string()) for n in ("key", "reason", "of")] + [("distance", pa.int32())])
CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DedupStep:
    """Finds duplicates and evaluation images among the images within all bounds."""

    fit: FilterSettings  # how candidates are cut
    max_distance: int = 3  # maximum distance between duplicates; -1 disables the search
    leak_distance: int = 6  # maximum distance between an image and an evaluation image
    # Folders of evaluation images, which must not be trained on. They are cut like the candidates,
    # and also compared mirrored.
    against: tuple[str, ...] = ()

    name = "dedup"

    def __post_init__(self) -> None:
        if not -1 <= self.max_distance <= 15 or not 0 <= self.leak_distance <= 32:
            raise ValueError(
                "dedup needs max_distance -1 to 15 and leak_distance 0 to 32, got "
                f"{self.max_distance} and {self.leak_distance}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output besides the rows and evaluation images."""
        return {"max_distance": self.max_distance, "leak_distance": self.leak_distance}

    def open(self) -> Process:
        """Return the function that processes the step's only unit."""
        return self._find

    def _find(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Write a row for each image to remove; `of` names the image it duplicates."""
        thresholds = Thresholds(**unit.inputs["thresholds"])
        keys, hashes, quality = _survivors(
            Path(unit.inputs["root"]), unit.inputs["units"], thresholds
        )
        names, wanted = _evaluation_hashes(self.against, self.fit)
        rows = []
        leaks = np.zeros(len(keys), dtype=bool)
        for number, of, distance in find_near(hashes, wanted, self.leak_distance):
            if not leaks[number]:
                leaks[number] = True
                rows.append(_row(keys[number], "in an evaluation set", names[of], distance))
        leaked, left = len(rows), np.flatnonzero(~leaks)
        groups = group_duplicates(hashes[left], self.max_distance)
        winners = left[best_of(groups, quality[left], keys[left])]
        lost = winners != left
        for pair in zip(left[lost], winners[lost], strict=True):
            number, winner = map(int, pair)
            distance = int(np.bitwise_count(hashes[number] ^ hashes[winner]))
            rows.append(_row(keys[number], "duplicate", keys[winner].decode(), distance))
        write_rows(folder / "rows.parquet", rows, ROWS)
        return {
            "compared": len(keys),
            "evaluation_images": len(set(names)),
            "leaked": leaked,
            "duplicates": len(rows) - leaked,
        }


def _row(key: bytes, reason: str, of: str, distance: int) -> dict[str, Any]:
    return {"key": key.decode(), "reason": reason, "of": of, "distance": distance}


def _survivors(
    root: Path, units: Sequence[str], thresholds: Thresholds
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys (N,) bytes, hashes (N,) uint64 and quality (N,) of the rows within all bounds."""
    keys, hashes, quality = [np.zeros(0, "S1")], [np.zeros(0, np.uint64)], [np.zeros(0)]
    columns = ["phash", "original_height", "original_width", "bytes"]
    columns += [name for name in thresholds.bounds if name in MEASURES]
    for stored in stored_rows(root, units, columns, scores=True):
        kept = thresholds.judge(stored.table) == ""
        keys.append(np.array(stored.table.column("key").to_pylist(), dtype=np.bytes_)[kept])
        hashes.append(stored.table.column("phash").to_numpy()[kept])
        size = column(stored.table, "original_height") * column(stored.table, "original_width")
        quality.append((size + column(stored.table, "bytes") / 1e12)[kept])
    return np.concatenate(keys), np.concatenate(hashes), np.concatenate(quality)


def _evaluation_hashes(folders: Sequence[str], fit: FilterSettings) -> tuple[list[str], np.ndarray]:
    """Hash the images of the evaluation sets: whole, cut as candidates are, and mirrored."""
    names: list[str] = []
    hashes: list[int] = []
    if folders:
        from PIL import Image, ImageOps

        from open_supir.base.images import list_images, read_image
        from open_supir.curation.measures import perceptual_hash

        for folder in folders:
            for path in list_images(Path(folder).expanduser()):
                whole = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
                cut = [whole, *(piece for _, piece in fit.fit(whole) if min(whole.size) > fit.size)]
                for picture in cut:
                    for view in (picture, ImageOps.mirror(picture)):
                        names.append(str(path))
                        hashes.append(perceptual_hash(view))
    return names, np.array(hashes, dtype=np.uint64)


def find_near(
    hashes: np.ndarray, wanted: np.ndarray, distance: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (index in `hashes`, index in `wanted`, distance) of every pair within `distance`.

    Args:
        hashes: (N,) uint64.
        wanted: (M,) uint64; each is compared with all hashes.
    """
    for start in range(0, len(hashes), CHUNK):
        chunk = hashes[start : start + CHUNK]
        for number, other in enumerate(wanted):
            bits = np.bitwise_count(chunk ^ other)
            for hit in np.flatnonzero(bits <= distance):
                yield start + int(hit), number, int(bits[hit])


def group_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return the group of every hash, (N,) int: chains of hashes at most `distance` bits apart.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits, so only those
    that share a band are compared: no pair is missed.
    """
    from scipy.sparse import coo_array  # takes as long to load as all the rest here
    from scipy.sparse.csgraph import connected_components

    if distance < 0:
        return np.arange(len(hashes))
    unique, where = np.unique(hashes, return_inverse=True)
    pairs = [np.zeros((2, 0), np.int64)]
    edges = np.linspace(0, 64, distance + 2).astype(np.uint64)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        mask = np.uint64((1 << int(high - low)) - 1)
        band = (unique >> low) & mask
        order = np.argsort(band, kind="stable")
        cuts = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(order, cuts):
            if len(bucket) > 1:
                pairs += _near_pairs(unique, bucket, distance)
    one, two = np.concatenate(pairs, axis=1)
    links = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(unique), len(unique)))
    return connected_components(links, directed=False)[1][where]


def _near_pairs(hashes: np.ndarray, bucket: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yield the near pairs of a bucket, (2, P), row by row: memory stays linear in the bucket."""
    values = hashes[bucket]
    for number in range(len(bucket) - 1):
        near = np.bitwise_count(values[number + 1 :] ^ values[number]) <= distance
        others = bucket[number + 1 :][near]
        if len(others):
            yield np.stack([np.full(len(others), bucket[number]), others])


def best_of(groups: np.ndarray, quality: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the best image of each image's group, (N,) int64: the largest, then lowest key."""
    order = np.lexsort((keys, -quality, groups))
    first = np.flatnonzero(np.diff(groups[order], prepend=-1))  # start of each group
    counts = np.diff(first, append=len(order))
    best = np.empty(len(order), dtype=np.int64)
    best[order] = np.repeat(order[first], counts)
    return best
