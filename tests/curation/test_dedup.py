from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from open_supir.curation.dedup import DedupStep, best_of, find_near, group_duplicates
from open_supir.curation.pipeline import Pipeline
from open_supir.curation.runners import LocalRunner
from open_supir.curation.steps import FilterStep
from open_supir.curation.tables import read_rows
from open_supir.data.demo import load_photo
from tests.curation.toy import settings

HERE = LocalRunner(num_workers=0)


def _hashes(count: int, seed: int = 0) -> np.ndarray:
    """Random hashes, a third of them copies of others with a few bits flipped."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 63, count, dtype=np.uint64)
    for number in range(count // 3):
        flips = rng.choice(64, size=rng.integers(0, 7), replace=False)
        mask = np.uint64(sum(1 << int(bit) for bit in flips))
        hashes[number] = hashes[count - 1 - number] ^ mask
    return hashes


def _chains(hashes: np.ndarray, distance: int) -> list[set[int]]:
    """Groups by comparing all with all, merged until nothing changes."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    reach = near.copy()
    for _ in range(8):
        reach = (reach.astype(int) @ near.astype(int)) > 0
    return sorted({frozenset(np.flatnonzero(row).tolist()) for row in reach}, key=min)  # type: ignore[return-value]


@pytest.mark.parametrize("distance", [0, 1, 3, 5])
def test_groups_are_those_of_comparing_all_with_all(distance: int) -> None:
    hashes = _hashes(240, seed=distance)
    groups = group_duplicates(hashes, distance)
    found = [set(np.flatnonzero(groups == g).tolist()) for g in np.unique(groups)]
    assert sorted(found, key=min) == [set(group) for group in _chains(hashes, distance)]


def test_no_groups_where_none_are_wanted() -> None:
    assert len(set(group_duplicates(np.zeros(5, np.uint64), -1).tolist())) == 5
    assert len(group_duplicates(np.zeros(0, np.uint64), 3)) == 0


def test_best_of_a_group_is_the_largest_then_the_lowest_key() -> None:
    rng = np.random.default_rng(0)
    groups, quality = rng.integers(0, 30, 200), rng.integers(0, 4, 200).astype(float)
    keys = rng.permutation(200).astype(np.bytes_)
    for number, best in enumerate(best_of(groups, quality, keys)):
        mates = np.flatnonzero(groups == groups[number])
        assert best == min(mates, key=lambda mate: (-quality[mate], keys[mate]))
    assert len(best_of(groups[:0], quality[:0], keys[:0])) == 0


def test_near_hashes_are_all_found() -> None:
    hashes, wanted = _hashes(300), _hashes(300)[:40] ^ np.uint64(0b101)
    found = {(i, j): d for i, j, d in find_near(hashes, wanted, 6)}
    bits = np.bitwise_count(hashes[:, None] ^ wanted[None])
    assert found == {(int(i), int(j)): int(bits[i, j]) for i, j in np.argwhere(bits <= 6)}
    assert len(found) >= 40


def _run(source: Path, output: Path, **options) -> dict[str, tuple[str, str]]:
    """Run filter and dedup; returns file name -> (reason, what it is like)."""
    cut = FilterStep(size=128, min_side=128)
    chosen = settings(source, output, filter=cut, dedup=DedupStep(fit=cut, **options))
    Pipeline(chosen, HERE).run(["filter", "dedup"])
    names = {}
    for path in sorted((output / "work/filter").iterdir()):
        names |= {r["key"]: Path(r["path"]).name for r in read_rows(path / "rows.parquet")}
    rows = read_rows(output / "work/dedup/all/rows.parquet")
    return {names[row["key"]]: (row["reason"], names.get(row["of"], row["of"])) for row in rows}


def test_of_copies_the_largest_stays_and_evaluation_images_go(tmp_path: Path) -> None:
    source, held_out = tmp_path / "in", tmp_path / "held out"
    source.mkdir()
    held_out.mkdir()
    cat, cup, face = (load_photo(f"{n}.png") for n in ("chelsea", "coffee", "astronaut"))
    cat.save(source / "cat.png")
    cat.resize((cat.width // 2, cat.height // 2)).save(source / "cat-small.jpg", quality=60)
    cup.save(source / "cup.png")
    face.save(source / "face.png")
    ImageOps.mirror(cup).resize((300, 200)).save(held_out / "mirrored.jpg", quality=50)
    gone = _run(source, tmp_path / "out", against=(str(held_out),))
    assert gone == {
        "cat-small.jpg": ("duplicate", "cat.png"),
        "cup.png": ("in an evaluation set", str(held_out / "mirrored.jpg")),
    }


def test_tile_of_an_evaluation_image_is_found_where_candidates_are_tiles(tmp_path: Path) -> None:
    source, held_out = tmp_path / "in", tmp_path / "held out"
    source.mkdir()
    held_out.mkdir()
    photo = load_photo("coffee.png").crop((0, 0, 256, 256))
    photo.save(held_out / "whole.png")
    photo.save(source / "same.jpg", quality=90)
    cut = FilterStep(size=128, min_side=128, large="tiles")
    chosen = settings(
        source, tmp_path / "out", filter=cut, dedup=DedupStep(fit=cut, against=(str(held_out),))
    )
    Pipeline(chosen, HERE).run(["filter", "dedup"])
    rows = read_rows(tmp_path / "out/work/dedup/all/rows.parquet")
    assert len([r for r in rows if r["reason"] == "in an evaluation set"]) == 4


def test_missing_evaluation_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(tmp_path / "in/a.png")
    with pytest.raises(FileNotFoundError, match="dedup.against: no such folder"):
        _run(tmp_path / "in", tmp_path / "out", against=(str(tmp_path / "nowhere"),))


@pytest.mark.parametrize("options", [{"max_distance": 16}, {"leak_distance": -1}])
def test_distances_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="max_distance -1 to 15"):
        DedupStep(fit=FilterStep(), **options)
