"""Validation folders and pairs: fixed crops, captions beside the images, partners by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from open_supir.data.pairs import FolderDataset, PairDataset
from open_supir.data.samples import collate
from tests.data.made import pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hq").mkdir()
    for i, (height, width) in enumerate([(100, 140), (90, 64), (20, 30)]):
        Image.fromarray(pixels(i, height, width)).save(tmp_path / "hq" / f"{i}.png")
    (tmp_path / "hq" / "0.txt").write_text("a caption\n", encoding="utf-8")
    return tmp_path / "hq"


def test_first_crops_are_the_centres(folder: Path) -> None:
    data = FolderDataset(folder, size=64, seed=0)
    assert len(data) == 3
    sample = data[0]
    assert np.array_equal(sample["hq"], pixels(0, 100, 140)[18:82, 38:102])
    assert sample["sizes"].tolist() == [100, 140, 18, 38, 64, 64]
    assert (sample["caption"], sample["key"], data[1]["caption"]) == ("a caption", "0", "")


def test_further_crops_are_elsewhere_but_fixed(folder: Path) -> None:
    data, again = (FolderDataset(folder, size=64, seed=0, count=9) for _ in range(2))
    assert [data[i]["key"] for i in range(9)] == ["0", "1", "2"] * 3
    assert not np.array_equal(data[0]["hq"], data[3]["hq"])
    for i in range(9):
        assert np.array_equal(data[i]["hq"], again[i]["hq"]) and data[i]["seed"] == again[i]["seed"]
    assert len({data[i]["seed"] for i in range(9)}) == 9


def test_small_images_are_enlarged(folder: Path) -> None:
    batch = collate([FolderDataset(folder, size=64, seed=0)[i] for i in range(3)])
    assert batch["hq"].shape == (3, 3, 64, 64)


def test_pairs_cut_the_same_place_out_of_both(folder: Path) -> None:
    low = folder.parent / "lq"
    low.mkdir()
    for i, (height, width) in enumerate([(100, 140), (90, 64), (20, 30)]):
        Image.fromarray(255 - pixels(i, height, width)).save(low / f"{i}.png")
    data = PairDataset(folder, low, size=16, seed=0, count=6)
    for i in range(6):
        sample = data[i]
        assert np.array_equal(sample["lq"], 255 - sample["hq"])
    batch = collate([data[i] for i in range(2)])
    assert batch["lq"].shape == batch["hq"].shape == (2, 3, 16, 16)
    assert batch["lq"].dtype == torch.uint8


def test_low_resolution_partners_are_enlarged(folder: Path) -> None:
    low = folder.parent / "lq"
    low.mkdir()
    for i, (height, width) in enumerate([(25, 35), (45, 32), (10, 15)]):
        Image.fromarray(pixels(i, height, width)).save(low / f"{i}.jpg")
    assert PairDataset(folder, low, size=16, seed=0)[0]["lq"].shape == (16, 16, 3)


def test_missing_partners_are_named(folder: Path) -> None:
    low = folder.parent / "lq"
    low.mkdir()
    Image.fromarray(pixels(0)).save(low / "0.png")
    with pytest.raises(ValueError, match="2 images of .* have no partner in .*: 1"):
        PairDataset(folder, low, size=16, seed=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FolderDataset(folder.parent / "nowhere", size=16, seed=0)
