"""The command: images in, LQ and parameters out, and the parameters reproduce the LQ."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from open_supir.base.images import read_image
from open_supir.base.images.write import write_image
from open_supir.commands.degrade import RANGES
from open_supir.degradation import DegradationPipeline
from open_supir.degradation.folder import ROWS, degrade_folder, image_seed, read_rows

from .samples import ROOT, photo, preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "hq"
    (source / "more").mkdir(parents=True)
    write_image(source / "a.png", photo("coffee.png", 64, 80)[0])
    write_image(source / "more/b.png", photo("astronaut.png", 51, 64)[0])
    return source


def degrade(
    pipeline: DegradationPipeline, source: Path, target: Path, seed: int = 0, **options
) -> dict[str, bytes]:
    """Return what was written, by path below `target`."""
    device = torch.device("cpu")
    written, failed = degrade_folder(pipeline, source, target, seed=seed, device=device, **options)
    assert not failed
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in written}


def test_rows_reproduce_the_written_images(folder: Path, tmp_path: Path) -> None:
    """Also where the seed is another one."""
    pipeline, target = preset("supir_q"), tmp_path / "lq"
    first = degrade(pipeline, folder, target, seed=7)
    assert list(first) == ["a.png", "more/b.png"]
    rows = [json.loads(line) for line in (target / ROWS).read_text().splitlines()]
    assert [row["source"] for row in rows] == list(first)
    assert rows[1]["seed"] == image_seed(7, "more/b.png")
    for name in first:
        assert read_image(target / name).shape == read_image(folder / name).shape
    again = degrade(pipeline, folder, tmp_path / "again", rows=read_rows(target / ROWS))
    assert again == first
    assert (tmp_path / "again" / ROWS).read_text() == (target / ROWS).read_text()


def test_the_same_seed_writes_the_same_bytes_whatever_else_is_there(
    folder: Path, tmp_path: Path
) -> None:
    pipeline = preset("supir_f")
    both = degrade(pipeline, folder, tmp_path / "one")
    (folder / "0.png").write_bytes((folder / "a.png").read_bytes())
    more = degrade(pipeline, folder, tmp_path / "two")
    assert {name: more[name] for name in both} == both
    assert more["0.png"] != more["a.png"] and degrade(pipeline, folder, tmp_path, seed=1) != more
    alone = degrade(pipeline, folder / "a.png", tmp_path / "three")
    assert alone == {"a.png": both["a.png"]}


def test_bad_images_are_left_out_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be read, and one whose size does not fit its row."""
    rows, device = {}, torch.device("cpu")
    degrade(preset("x4"), folder, tmp_path / "lq")
    rows = read_rows(tmp_path / "lq" / ROWS)
    (folder / "broken.png").write_bytes(b"not an image")
    write_image(folder / "a.png", photo("coffee.png", 30, 30)[0])
    shutil.copy(folder / "a.png", folder / "new.png")
    written, failed = degrade_folder(
        preset("x4"), folder, tmp_path / "again", seed=0, device=device, rows=rows
    )
    assert [path.name for path in written] == ["b.png"]
    for message, words in zip(
        failed, ("a.png: .*30", "broken.png", "new.png: no row"), strict=True
    ):
        assert re.search(words, message) and message in caplog.text


def test_images_of_one_stem_each_get_a_file_and_later_ones_rename_nothing(
    folder: Path, tmp_path: Path
) -> None:
    pipeline, target = preset("x4"), tmp_path / "lq"
    first = degrade(pipeline, folder, target)
    write_image(folder / "a.jpg", photo("coffee.png", 64, 64)[0])
    more = degrade(pipeline, folder, target)
    assert set(more) == {*first, "a.jpg.png"}
    assert all(more[name] == first[name] for name in first)
    assert set(degrade(pipeline, folder, target)) == set(more)
    fresh = degrade(pipeline, folder, tmp_path / "fresh")
    assert set(fresh) == {"a.jpg.png", "a.png.png", "more/b.png"}
    rows = [json.loads(line) for line in (target / ROWS).read_text().splitlines()]
    assert {row["source"]: row["file"] for row in rows}["a.jpg"] == "a.jpg.png"


def test_files_that_are_not_ours_are_kept(folder: Path, tmp_path: Path) -> None:
    """A picture of the user's; then an LQ, and parameters, that were edited."""
    pipeline, target, device = preset("x4"), tmp_path / "lq", torch.device("cpu")
    target.mkdir()
    write_image(target / "a.png", photo("coffee.png", 16, 16)[0])
    mine = (target / "a.png").read_bytes()

    def run(**options) -> tuple[list[str], list[str]]:
        written, failed = degrade_folder(
            pipeline, folder, target, seed=0, device=device, ranges="a: 1\n", **options
        )
        return [path.name for path in written], failed

    written, (line,) = run()
    assert written == ["b.png"] and f"{target / 'a.png'} was not written by this" in line
    assert (target / "a.png").read_bytes() == mine
    assert run(overwrite=True) == (["a.png", "b.png"], [])
    assert run() == (["a.png", "b.png"], [])
    (target / "more/b.png").write_bytes(mine)
    written, (line,) = run()
    assert written == ["a.png"] and "more/b.png" in line
    assert (target / "more/b.png").read_bytes() == mine
    for name in (ROWS, RANGES, "degraded.jsonl"):
        run(overwrite=True)
        (target / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"{name} .*set overwrite=true"):
            run()
        assert (target / name).read_text() == "mine"


def test_inputs_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    before = (folder / "a.png").read_bytes()
    written, (line,) = degrade_folder(
        preset("x4"), folder / "a.png", folder, seed=0, device=torch.device("cpu"), overwrite=True
    )
    assert not written and "is an input" in line and (folder / "a.png").read_bytes() == before


def test_every_kind_that_restore_reads_is_degraded(tmp_path: Path) -> None:
    """12 and 16 bits, floating point, GIF: each as its 8-bit PNG, to the bit."""
    source = tmp_path / "in"
    source.mkdir()
    grey = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
    rgb = np.stack([grey, grey.T, grey[::-1]], axis=-1)
    twelve = np.rint(rgb / 255 * 4095).astype(np.uint16)
    tifffile.imwrite(source / "float.tif", (rgb / 255).astype(np.float32), photometric="rgb")
    tifffile.imwrite(source / "twelve.tif", twelve, photometric="rgb", bitspersample=12)
    tifffile.imwrite(source / "sixteen.tif", rgb.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(grey).save(source / "grey.gif")
    Image.fromarray(rgb).save(source / "reference.png")
    Image.fromarray(grey).save(source / "grey_reference.png")
    device, pipeline = torch.device("cpu"), preset("x4")
    written, failed = degrade_folder(pipeline, source, tmp_path / "lq", seed=0, device=device)
    assert not failed and len(written) == 6
    for name in ("float", "twelve", "sixteen"):
        low = read_image(tmp_path / f"lq/{name}.png")
        assert torch.equal(low, read_image(tmp_path / "lq/reference.png"))
    low = read_image(tmp_path / "lq/grey.png")
    assert torch.equal(low, read_image(tmp_path / "lq/grey_reference.png"))


def test_limits_and_other_folders_of_results(folder: Path, tmp_path: Path, caplog) -> None:
    device, pipeline = torch.device("cpu"), preset("x4")
    first = degrade(pipeline, folder, folder / "lq")
    assert set(degrade(pipeline, folder, folder / "other")) == set(first)
    assert f"{folder / 'lq'} is left out: it holds results" in caplog.text
    written, failed = degrade_folder(
        pipeline, folder, tmp_path / "few", seed=0, device=device, max_pixels=4000
    )
    assert [path.name for path in written] == ["b.png"]
    assert "a.png" in failed[0] and "set max_pixels=5120 or more" in failed[0]


@pytest.mark.parametrize("line", ["{", "[]", '{"source": "a.png"}', "null"])
def test_a_broken_row_is_named(line: str, folder: Path, tmp_path: Path) -> None:
    degrade(preset("x4"), folder, tmp_path)
    with (tmp_path / ROWS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=f"{ROWS}, line 3"):
        read_rows(tmp_path / ROWS)


@pytest.mark.slow
def test_command_runs_repeats_and_refuses_to_overwrite_its_input(
    folder: Path, tmp_path: Path
) -> None:
    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "src.degrade", f"input={folder}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    switches = ("degradation=supir_q", "degradation.config.jpeg=diffjpeg")
    good = run(f"output={one}", *switches, "seed=3")
    assert good.returncode == 0, good.stderr
    assert run(f"output={two}", *switches, f"parameters={one / ROWS}").returncode == 0
    for name in ("a.png", "more/b.png", ROWS, RANGES):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    # The two files alone are enough to make the images again.
    pipeline = instantiate(OmegaConf.load(one / RANGES))
    images = degrade(pipeline, folder, three, rows=read_rows(one / ROWS))
    assert all((one / name).read_bytes() == image for name, image in images.items())
    bad = run(f"output={folder}")
    assert bad.returncode != 0 and "replace the originals" in bad.stderr
    (folder / "broken.png").write_bytes(b"not an image")
    partly = run(f"output={three}", "degradation=x4")
    assert partly.returncode == 1 and "1 of 3 images failed" in partly.stderr
    assert "broken.png" in partly.stderr and (three / "more/b.png").exists()
