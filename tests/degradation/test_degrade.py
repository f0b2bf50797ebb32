"""The command: images in, LQ and parameters out, and the parameters reproduce the LQ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.degrade import ROWS, degrade_folder, replay
from src.images import read_image, write_image

from .samples import ROOT, photo, preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "hq"
    (source / "more").mkdir(parents=True)
    write_image(source / "a.png", photo("coffee.png", 64, 80)[0])
    write_image(source / "more/b.png", photo("astronaut.png", 51, 64)[0])
    return source


def test_rows_reproduce_the_written_images(folder: Path, tmp_path: Path) -> None:
    pipeline, target = preset("supir_q"), tmp_path / "lq"
    written = degrade_folder(pipeline, folder, target, seed=7, device=torch.device("cpu"))
    rows = [json.loads(line) for line in (target / ROWS).read_text().splitlines()]
    assert [target / row["file"] for row in rows] == written and len(rows) == 2
    for i, row in enumerate(rows):
        hq, lq = read_image(folder / row["source"]), read_image(target / row["file"])
        assert lq.shape == hq.shape and row["seed"] == 7 + i
        assert torch.equal((replay(pipeline, row, hq) * 255).round().byte(), lq)


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        written = degrade_folder(
            preset("supir_f"), folder, tmp_path / name, seed=0, device=torch.device("cpu")
        )
        runs.append([path.read_bytes() for path in written])
    assert runs[0] == runs[1]


def test_an_unreadable_image_is_left_out_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.png").write_bytes(b"not an image")
    written = degrade_folder(
        preset("x4"), folder, tmp_path / "lq", seed=0, device=torch.device("cpu")
    )
    assert len(written) == 2 and "broken.png" in caplog.text


def test_images_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_image(folder / "a.jpg", photo("coffee.png", 64, 64)[0])
    with pytest.raises(ValueError, match="a.png"):
        degrade_folder(preset("x4"), folder, tmp_path, seed=0, device=torch.device("cpu"))


@pytest.mark.slow
def test_command_runs_and_refuses_to_overwrite_its_input(folder: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "src.degrade", f"input={folder}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    good = run(f"output={tmp_path / 'lq'}", "degradation=blur2_x4", "seed=3")
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "lq/more/b.png").exists() and (tmp_path / "lq" / ROWS).exists()
    bad = run(f"output={folder}")
    assert bad.returncode != 0 and "replace the originals" in bad.stderr
