"""Pictures inside of pages and beside them."""

import base64
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from open_supir.base.images.write import write_image
from open_supir.reports.pictures import embed, file_name


def test_page_of_a_hundred_images_stays_below_20_mb(tmp_path: Path) -> None:
    """Noise does not compress: the worst picture there is, four of 512 pixels an image."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    most = 13_000_000 // 400
    address = embed(tmp_path / "noise.png", most)
    assert len(base64.b64decode(address.split(",")[1])) <= most
    assert 400 * len(address) < 18_000_000  # leaves two for tables


def test_small_pictures_are_carried_as_they_are(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 32, 32))
    address = embed(tmp_path / "a.png", 100_000)
    assert base64.b64decode(address.split(",")[1]) == (tmp_path / "a.png").read_bytes()


def test_labels_make_short_and_distinctfile_names() -> None:
    names = ["a/b", "a_b", "a b", "x" * 300, "x" * 301]
    files = {file_name(name) for name in names}
    assert len(files) == len(names) and max(map(len, files)) < 80
