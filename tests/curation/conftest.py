"""A folder of candidates: good ones, and one of each kind that must be refused."""

from pathlib import Path

import pytest
from PIL import Image

from tests.data.made import jpeg

GOOD = 20
BAD = {
    "empty.jpg": "damaged image",
    "half.jpg": "damaged image",
    "html.png": "damaged image",
    "small.jpg": "too small",
}


@pytest.fixture(scope="session")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("candidates")
    for number in range(GOOD):
        name = folder / f"sub{number % 3}" / f"{number:02d}.jpg"
        name.parent.mkdir(exist_ok=True)
        name.write_bytes(jpeg(number, 64, 80))
    (folder / "sub0" / "00.txt").write_text("a caption that came along\n")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes(jpeg(50)[:900])
    (folder / "html.png").write_bytes(b"<html>404</html>")
    (folder / "small.jpg").write_bytes(jpeg(51, 32, 90))
    Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "flat.png")
    return folder
