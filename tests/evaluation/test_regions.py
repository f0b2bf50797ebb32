"""metrics.mask: what is measured is the region, and nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from open_supir.evaluation.benchmark import run_benchmark
from open_supir.evaluation.records import Record
from open_supir.evaluation.regions import Regions
from open_supir.evaluation.samples import Sample

HQ = torch.full((1, 3, 32, 32), 100 / 255)


def mask(path: Path, *, top: int = 8, round_corner: bool = False) -> Path:
    grey = np.zeros((32, 32), dtype=np.uint8)
    grey[top:24, 4:20] = 255
    grey[top, 4] = 0 if round_corner else 255
    Image.fromarray(grey).save(path)
    return path


def wrong(sample: Sample) -> torch.Tensor:
    """Off by 10 levels inside, by 90 outside and at the rectangle's first pixel."""
    out = HQ + 90 / 255
    out[..., 8:24, 4:20] = 110 / 255
    out[..., 8, 4] = 190 / 255
    return out


def psnr(folder: Path, place: Path, name: str = "a") -> Record:
    [record] = run_benchmark([(name, HQ, HQ)], {"m": wrong}, ["psnr"], out_dir=folder, run="r",
                             regions=Regions(place))  # fmt: skip
    return record


def test_error_outside_of_the_region_does_not_count(tmp_path: Path) -> None:
    """PSNR of the rectangle by the formula: 255 of 256 pixels are off by 10, one is black."""
    value = psnr(tmp_path / "out", mask(tmp_path / "m.png", round_corner=True))["value"]
    error = 255 * 10**2 / 256
    assert value == pytest.approx(10 * math.log10(255**2 / error), abs=1e-3)


def test_masks_are_found_by_name_and_one_that_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask(tmp_path / "masks/a.mask.png")
    assert psnr(tmp_path / "out", tmp_path / "masks")["status"] == "ok"
    lost = psnr(tmp_path / "out", tmp_path / "masks", name="b")
    assert lost["status"] == "load_failed" and "b.mask.png" in lost["reason"]
    before = Regions(tmp_path / "masks").digest()
    mask(tmp_path / "masks/a.mask.png", top=9)
    assert Regions(tmp_path / "masks").digest() != before
    with pytest.raises(FileNotFoundError, match="metrics.mask=.*nowhere"):
        Regions(tmp_path / "nowhere")


def test_metrics_of_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metrics.mask: fid"):
        run_benchmark([], {}, ["fid"], out_dir=tmp_path, run="r",
                      regions=Regions(mask(tmp_path / "m.png")))  # fmt: skip
