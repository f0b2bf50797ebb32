"""The picture of an evaluation: which images, in which columns."""

from pathlib import Path

import torch
from PIL import Image

from open_supir.base.images.write import write_image
from open_supir.evaluation.benchmark import picture_path
from open_supir.evaluation.records import Record
from open_supir.evaluation.sheet import GAP, TITLE, write_sheet


def _record(image: str, method: str) -> Record:
    return Record(
        image=image, method=method, metric="psnr", value=1.0, run="a", settings={},
        status="ok", reason="",
    )  # fmt: skip


def test_sheet_has_a_row_for_each_image_with_all_its_pictures(tmp_path: Path) -> None:
    records = [_record(image, method) for image in ("a", "b", "c") for method in ("lq", "restored")]
    levels = {"lq": 0.2, "restored": 0.6, "hq": 1.0}
    for image in ("a", "c"):  # b has no picture of `restored`
        for method, level in levels.items():
            path = picture_path(tmp_path / "images", method, image)
            write_image(path, torch.full((3, 96, 96), level))
    write_image(picture_path(tmp_path / "images", "lq", "b"), torch.zeros(3, 96, 96))
    path = write_sheet(records, tmp_path)
    assert path == tmp_path / "sheet.png"
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 192 + 4 * GAP, TITLE + 2 * 192 + 3 * GAP)
        for column, level in enumerate(levels.values()):
            for row in range(2):
                at = (GAP + 96 + column * (192 + GAP), TITLE + GAP + 96 + row * (192 + GAP))
                assert sheet.getpixel(at) == (round(255 * level),) * 3


def test_without_pictures_there_is_no_sheet(tmp_path: Path) -> None:
    assert write_sheet([_record("a", "lq")], tmp_path) is None
    assert list(tmp_path.iterdir()) == []
