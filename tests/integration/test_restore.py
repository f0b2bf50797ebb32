"""The restore command over folders: every mode, every bad file, records, resume, limits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from open_supir.base.images import read_photo
from open_supir.commands.restore import restore
from open_supir.inference import Restorer, memory, records
from open_supir.inference.folder import printable
from open_supir.inference.model import Model
from open_supir.networks import AutoencoderKL
from tests.integration import hostile
from tests.integration.conftest import Compose
from tests.test_configs import ROOT
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def run(composed_in: Compose, stage_2: Path, tmp_path: Path):
    """Return a function that restores tmp_path/in into tmp_path/out."""

    def call(*overrides: str, output: str = "out") -> list[str]:
        return restore(
            composed_in(
                "restore",
                f"input={tmp_path / 'in'}",
                f"output={tmp_path / output}",
                f"checkpoint={stage_2}",
                "device=cpu",
                *overrides,
            )
        )

    (tmp_path / "in").mkdir()
    return call


def _photo(path: Path, size: tuple[int, int] = (20, 28), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_good_files_of_every_mode_come_back_as_they_were(run, tmp_path: Path) -> None:
    sizes = hostile.write_good(tmp_path / "in")
    assert run() == []
    out = tmp_path / "out"
    records = {p.relative_to(out): json.loads(p.read_text()) for p in out.rglob("*.json")}
    assert {record["input"]["name"] for record in records.values()} == set(sizes)
    assert len({str(path).casefold() for path in records}) == len(sizes)  # on any disk
    for path, record in records.items():
        before = read_photo(tmp_path / "in" / record["input"]["name"])
        after = read_photo(out / path.parent / record["outputs"][0]["name"])
        assert after.rgb.shape[-2:] == sizes[record["input"]["name"]]
        assert after.rgb.shape == before.rgb.shape
        assert (after.bits, after.is_grey) == (before.bits, before.is_grey)
        assert (after.alpha is None) == (before.alpha is None)
        if before.alpha is not None and after.alpha is not None:
            assert (before.alpha - after.alpha).abs().max() < 1e-6
    assert not [name for name in _files(out) if name.endswith(".tmp")]


def test_bad_files_are_one_line_each_and_the_good_ones_are_restored(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = hostile.write_bad(tmp_path / "in")
    _photo(tmp_path / "in/good.png")
    _photo(tmp_path / "in/sub/good.png")
    before = {p for p in tmp_path.rglob("*") if tmp_path / "out" not in p.parents}
    failed = run()
    assert len(bad) >= 30 and len(failed) == len(bad)
    for name in bad:
        (line,) = [f for f in failed if f"/in/{printable(name)}: " in f]
        assert "\n" not in line and len(line.partition(": ")[2]) > 5
        assert "object at" not in line and "Traceback" not in line
    assert _files(tmp_path / "out") == [
        "good.png", "good.png.json", "sub/good.png", "sub/good.png.json",
    ]  # fmt: skip
    after = {p for p in tmp_path.rglob("*") if tmp_path / "out" not in p.parents}
    assert after - before <= {tmp_path / "out"}


def test_what_is_done_is_skipped_until_something_changed(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        _photo(tmp_path / f"in/{name}.png", seed=ord(name))
    assert run() == []
    restored: list[str] = []
    real = records.restore_file

    def note(restorer, job, *args, **options):
        restored.append(job.name)
        return real(restorer, job, *args, **options)

    monkeypatch.setattr(records, "restore_file", note)

    def again(*overrides: str) -> list[str]:
        restored.clear()
        assert run(*overrides) == []
        return list(restored)

    assert again() == []
    (tmp_path / "out/a.png").unlink()
    assert again() == ["a.png"]
    (tmp_path / "out/b.png").unlink()
    (tmp_path / "out/b.png.json").unlink()
    assert again() == ["b.png"]
    _photo(tmp_path / "in/b.png", seed=9)
    assert again() == ["b.png"]
    assert again("options.seed=1") == ["a.png", "b.png"]
    assert again("options.seed=1") == []
    assert again("options.seed=1", "overwrite=true") == ["a.png", "b.png"]


def test_other_weights_are_told_by_content_and_not_by_place(
    run, workplace: Path, tmp_path: Path
) -> None:
    _photo(tmp_path / "in/a.png")
    record, robust = tmp_path / "out/a.png.json", workplace / "robust.safetensors"

    def restored(weights: Path) -> dict:
        assert run(f"weights.robust_encoder={weights}") == []
        return json.loads(record.read_text())

    first = restored(robust)
    assert first["model"]["weights.robust_encoder"] == robust.name
    assert str(tmp_path) not in record.read_text()
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / robust.name
    shutil.copy(robust, moved)
    before = record.stat().st_mtime_ns
    restored(moved)
    assert record.stat().st_mtime_ns == before  # it was done
    tensors = load_file(robust)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, moved)
    assert restored(moved)["key"] != first["key"]


def test_file_captions_that_changed_are_taken_up(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    for text in ("a cat", "a dog"):
        (tmp_path / "in/a.txt").write_text(text)
        assert run("captioner=file") == []
        assert json.loads((tmp_path / "out/a.png.json").read_text())["caption"] == text


def test_runs_of_the_same_inputs_give_the_same_bytes(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    for output in ("one", "two"):
        assert run(output=output) == []
    assert (tmp_path / "one/a.png").read_bytes() == (tmp_path / "two/a.png").read_bytes()


def test_record_inside_and_beside_name_everything(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    assert run("options.num_samples=2", "options.scale=2") == []
    beside = json.loads((tmp_path / "out/a.png.json").read_text())
    assert [item["name"] for item in beside["outputs"]] == ["a.png", "a_2.png"]
    for number, name in enumerate(("a.png", "a_2.png")):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (56, 40)
            inside = json.loads(image.info["restoration"])
        assert inside["sample"] == number
        for key in ("options", "model", "versions", "prompt", "caption", "given_up", "is_exact"):
            assert inside[key] == beside[key]
    assert beside["options"]["seed"] == 0 and len(beside["model"]["sha256"]) == 64
    assert beside["seconds"]["sample"] > 0


def test_a_mask_beside_a_photograph_is_used_and_is_no_photograph(run, tmp_path: Path) -> None:
    photo = _photo(tmp_path / "in/a.png", (64, 64))
    Image.new("L", (32, 32), 0).save(tmp_path / "in/a.mask.png")
    assert run() == []
    assert _files(tmp_path / "out") == ["a.png", "a.png.json"]
    kept = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert np.array_equal(kept, np.asarray(Image.open(photo)))
    Image.new("L", (32, 32), 255).save(tmp_path / "in/a.mask.png")
    assert run() == []  # another mask: restored again
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "out/a.png")), kept)


def test_one_mask_for_all_is_none_of_them_even_if_it_lies_there(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    Image.new("L", (28, 20), 0).save(tmp_path / "in/region.png")
    assert run(f"options.mask={tmp_path / 'in/region.png'}") == []
    assert _files(tmp_path / "out") == ["a.png", "a.png.json"]


def test_a_bad_mask_is_one_line_and_the_others_are_restored(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c", "d"):
        _photo(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.mask.png").write_bytes(b"<html>")
    Image.new("LA", (28, 20), (255, 0)).save(tmp_path / "in/c.mask.png")
    Image.new("L", (20, 28), 0).save(tmp_path / "in/d.mask.png")
    failed = run()
    assert [line.partition(": ")[0][-5:] for line in failed] == ["b.png", "c.png"]
    assert "b.mask.png" in failed[0] and "cannot be read" in failed[0]
    assert "c.mask.png" in failed[1] and "transparent" in failed[1]
    assert _files(tmp_path / "out") == ["a.png", "a.png.json", "d.png", "d.png.json"]
    assert "d.mask.png: 20 x 28, stretched to 28 x 20" in caplog.text


def test_three_samples_bring_a_map_of_what_they_invented_and_their_mean(
    run, tmp_path: Path
) -> None:
    _photo(tmp_path / "in/a.png")
    asked = ("options.num_samples=3", "options.average=true", "sampler.tau=null")
    assert run(*asked) == []
    names = ["a.png", "a_2.png", "a_3.png", "a.average.png", "a.invented.png"]
    out = tmp_path / "out"
    record = json.loads((out / "a.png.json").read_text())
    assert [item["name"] for item in record["outputs"]] == names
    samples = [np.asarray(Image.open(out / name)).astype(float) for name in names[:3]]
    average = np.asarray(Image.open(out / names[3]))
    assert np.abs(average - np.mean(samples, axis=0)).max() <= 1
    levels = np.asarray(Image.open(out / names[4]))
    assert levels.shape == average.shape[:2] and levels.any()
    assert record["disagreement"] == pytest.approx(levels.mean(), abs=0.5)
    assert run(*asked) == []  # done already


@pytest.mark.parametrize("format, suffix", [("jpg", "jpg"), ("webp", "webp"), ("tiff", "tif")])
def test_other_formats(run, tmp_path: Path, format: str, suffix: str) -> None:
    _photo(tmp_path / "in/a.png")
    assert run(f"options.format={format}") == []
    assert read_photo(tmp_path / f"out/a.{suffix}").rgb.shape == (3, 20, 28)


def test_strength_zero_gives_back_every_bit(run, tmp_path: Path) -> None:
    hostile.write_good(tmp_path / "in")
    assert run("options.strength=0") == []
    before, after = (read_photo(tmp_path / d / "sixteen.png") for d in ("in", "out"))
    assert after.bits == 16 and bool((before.rgb == after.rgb).all())


def test_dry_run_writes_nothing_and_says_what_it_would(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _photo(tmp_path / "in/a.png")
    assert run("dry_run=true") == []
    assert not (tmp_path / "out").exists()
    assert "a.png: would be restored" in caplog.text


def test_shares_of_several_processes_are_whole_and_apart(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        _photo(tmp_path / f"in/{number}.png", seed=number)
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert run() == []
        done.append([name for name in _files(tmp_path / "out") if name.endswith(".png")])
    assert done == [["1.png"], ["0.png", "1.png", "2.png"]]


@pytest.mark.slow
def test_torchrun_shares_a_folder_and_one_bad_file_stops_nobody(
    stage_2: Path, tmp_path: Path
) -> None:
    """The first process is done at once, with a failure; the second one has work left then."""
    for number in range(6):
        _photo(tmp_path / f"in/{number}.png", (64, 64) if number % 2 else (20, 28), seed=number)
    (tmp_path / "in/4.png").write_bytes(b"<html>")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "src.restore", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}",
        f"checkpoint={stage_2}", "device=cpu", "sampler.num_steps=20",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert [name for name in _files(tmp_path / "out") if name.endswith(".png")] == [
        f"{number}.png" for number in (0, 1, 2, 3, 5)
    ]
    assert ended.stderr.count("error: 1 failed:") == 1, ended.stderr
    (tmp_path / "in/4.png").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0 and "0 to restore, 3 already done" in again.stdout


def test_nothing_is_written_through_links_in_the_output(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/sub/a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    (line,) = run()
    assert "leads outside the output folder" in line and not _files(tmp_path / "elsewhere")


def test_output_that_cannot_be_made_is_one_line_an_image(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/sub/a.png")
    _photo(tmp_path / "in/b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").write_bytes(b"in the way")
    (line,) = run()
    assert "sub/a.png: " in line and (tmp_path / "out/b.png").is_file()


def test_full_disk_stops_the_run_and_leaves_nothing_partial(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        _photo(tmp_path / f"in/{name}.png", seed=ord(name))
    room, real = ["a.png", "a.png.json"], os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name not in room:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("open_supir.base.files.os.replace", full)
    line, stopped = run()
    assert line.endswith("b.png: No space left on device")
    assert f"no more can be written to {tmp_path / 'out'}" in stopped and "2 images" in stopped
    assert _files(tmp_path / "out") == ["a.png", "a.png.json"]
    monkeypatch.setattr("open_supir.base.files.os.replace", real)
    assert run() == [] and len(_files(tmp_path / "out")) == 6


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "Full")])
def test_output_that_cannot_be_written_is_found_before_the_model_is_loaded(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    _photo(tmp_path / "in/a.png")

    def refuse(path: Path, content: bytes) -> int:
        raise error

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Model, "load", None)
    with pytest.raises(
        OSError, match=rf"output={tmp_path / 'out'} cannot be written to: {error.strerror}"
    ):
        run()


def test_files_that_are_not_ours_are_kept(run, tmp_path: Path) -> None:
    """A picture of the user's, a result edited by hand, and a record of another program."""
    for name in ("foreign", "edited", "sidecar", "fine"):
        _photo(tmp_path / f"in/{name}.png", seed=ord(name[0]))
    kept = {
        "foreign.png": _photo(tmp_path / "out/foreign.png", seed=99).read_bytes(),
        "sidecar.png.json": b'{"title": "sidecar.png", "description": ""}',
    }
    (tmp_path / "out/sidecar.png.json").write_bytes(kept["sidecar.png.json"])
    failed = run()
    assert len(failed) == 2 and (tmp_path / "out/fine.png").is_file()
    with Image.open(tmp_path / "out/edited.png") as image:
        image.rotate(90).save(tmp_path / "out/edited.png")
    kept["edited.png"] = (tmp_path / "out/edited.png").read_bytes()
    for overrides in ((), ("options.seed=1",)):
        failed = run(*overrides)
        assert len(failed) == 3 and all("set overwrite=true" in line for line in failed)
        for name, content in kept.items():
            assert (tmp_path / "out" / name).read_bytes() == content
            assert any(f"{tmp_path / 'out' / name} " in line for line in failed)
    assert not (tmp_path / "out/sidecar.png").exists()
    assert run("overwrite=true") == []
    assert all((tmp_path / "out" / name).read_bytes() != kept[name] for name in kept)


def test_a_sample_of_an_earlier_run_stays_ours(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    for number in (2, 1, 2):
        assert run(f"options.num_samples={number}", f"options.seed={number}") == []
    (tmp_path / "out/a_2.png").write_bytes(b"mine")
    (line,) = run("options.num_samples=2", "options.seed=5")
    assert "a_2.png was not written by this command" in line


def test_a_run_killed_between_record_and_picture_goes_on(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _photo(tmp_path / "in/a.png")
    assert run() == []
    real = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "a.png":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("open_supir.base.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run("options.seed=1")
    monkeypatch.setattr("open_supir.base.files.os.replace", real)
    assert run("options.seed=1") == []
    assert json.loads((tmp_path / "out/a.png.json").read_text())["options"]["seed"] == 1


def test_one_bad_caption_file_fails_its_image_only(run, tmp_path: Path) -> None:
    texts = {
        "good": b"a cat",
        "latin": "Zo\u00eb".encode("latin-1"),
        "wide": "a cat".encode("utf-16"),
        "long": b"x" * 70_000,
    }
    for name, text in texts.items():
        _photo(tmp_path / f"in/{name}.png", seed=ord(name[0]))
        (tmp_path / f"in/{name}.txt").write_bytes(text)
    _photo(tmp_path / "in/missing.png")
    failed = run("captioner=file", "captioner.required=true")
    assert len(failed) == 2
    for name in ("long", "missing"):
        assert any(line.startswith(f"{tmp_path / 'in' / name}.png: ") for line in failed)
    captions = {
        path.name: json.loads(path.read_text())["caption"]
        for path in (tmp_path / "out").glob("*.json")
    }
    assert captions == {
        "good.png.json": "a cat", "latin.png.json": "Zo\u00eb", "wide.png.json": "a cat"
    }  # fmt: skip


@pytest.mark.parametrize(("format", "side"), [("webp", 16384), ("jpg", 65501)])
def test_a_result_that_its_format_cannot_hold_is_refused_before_the_work(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, side: int
) -> None:
    _photo(tmp_path / "in/a.png", (1, 64))
    monkeypatch.setattr(Restorer, "__call__", None)
    (line,) = run(f"options.format={format}", f"options.long_side={side}")
    assert f"result too large for {format}: {side}x" in line and "options.format=png" in line


def test_long_names_keep_their_record_and_are_not_restored_again(run, tmp_path: Path) -> None:
    """251 bytes and a suffix are as long as a name may be; the record's would be longer."""
    names = ["a" * 250 + "b", "a" * 250 + "c", "\u00e9" * 125]
    for name in names:
        _photo(tmp_path / f"in/{name}.png", seed=len(name))
    assert run() == []
    files = _files(tmp_path / "out")
    assert len(files) == 6 and all(len(os.fsencode(name)) <= 255 for name in files)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files}
    assert run() == []
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files} == before


def test_a_later_file_of_the_same_stem_renames_nothing(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.jpg", seed=1)
    assert run() == []
    first = (tmp_path / "out/a.png").read_bytes()
    _photo(tmp_path / "in/a.png", seed=2)
    for _ in range(2):
        assert run() == []
        assert _files(tmp_path / "out") == ["a.png", "a.png.json", "a.png.png", "a.png.png.json"]
        assert (tmp_path / "out/a.png").read_bytes() == first
    record = json.loads((tmp_path / "out/a.png.png.json").read_text())
    assert record["input"]["name"] == "a.png"
    assert run(output="new") == []
    assert len(_files(tmp_path / "new")) == 4 and "a.jpg.png" in _files(tmp_path / "new")


def test_folders_of_results_below_the_input_are_left_out_with_a_word(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _photo(tmp_path / "in/a.png")
    _photo(tmp_path / "in/sub/b.png")
    assert run(output="in/first") == []
    assert run("options.seed=1", output="in/second") == []
    results = ["a.png", "a.png.json", "sub/b.png", "sub/b.png.json"]
    assert _files(tmp_path / "in/second") == results
    assert f"{tmp_path / 'in/first'} is left out: it holds results" in caplog.text
    shutil.move(tmp_path / "in", tmp_path / "moved")
    shutil.move(tmp_path / "moved/first", tmp_path / "in")
    assert run(output="again") == []  # asked for by name
    assert _files(tmp_path / "again") == results


def test_files_of_other_kinds_are_counted_in_one_line(
    run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.open(_photo(tmp_path / "in/a.png"))
    for name in ("b.jfif", "c.jpe", "d.JPG", "e", "f.bak"):
        image.save(tmp_path / "in" / name, "JPEG")
    image.save(tmp_path / "in/g.avif")
    image.save(tmp_path / "in/h.mpo", "MPO", save_all=True, append_images=[image.rotate(90)])
    (tmp_path / "in/a.txt").write_text("a caption")
    for name in ("i.mov", "j.mov", "k.nef", "l.jp2", "m"):
        (tmp_path / "in" / name).write_bytes(b"II*\0" if name == "k.nef" else b"something else")
    assert run("options.strength=0") == []
    done = [name for name in _files(tmp_path / "out") if name.endswith(".png")]
    assert done == [f"{letter}.png" for letter in "abcdefgh"]
    (line,) = [
        record.getMessage() for record in caplog.records if "left out" in record.msg % record.args
    ]
    raw = ".nef 1 (raw: develop it to TIFF or PNG first)"
    assert line == f"{tmp_path / 'in'}: 5 files left out: .mov 2, .jp2 1, {raw}, no suffix 1"
    with pytest.raises(ValueError, match="no images in this folder .1 file left out: .mov 1."):
        (tmp_path / "in2").mkdir()
        (tmp_path / "in2/i.mov").write_bytes(b"")
        run(f"input={tmp_path / 'in2'}")


def test_images_beyond_the_limits_are_restored_when_the_limits_are_raised(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for far less than the image, and Pillow's own limit below it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(memory, "_memory", lambda device: 1 << 20)
    _photo(tmp_path / "in/a.png", (96, 160))
    (line,) = run("max_pixels=10000")
    assert "160x96 pixels, limit 10000" in line and "set max_pixels=15360 or more" in line
    (line,) = run("max_output_pixels=10000")
    assert "set max_output_pixels=15360 or more" in line
    assert run("max_pixels=15360", "max_output_pixels=15360") == []
    record = json.loads((tmp_path / "out/a.png.json").read_text())
    assert "vae_tile=1024" in record["given_up"]
    with Image.open(tmp_path / "out/a.png") as image:
        assert image.size == (160, 96)


def test_xmp_beside_a_photograph_goes_along_and_is_made_true(run, tmp_path: Path) -> None:
    """As Adobe's programs name it and as darktable does; a file that is not ours is kept."""
    _photo(tmp_path / "in/a.jpg")
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'tiff:Orientation="6" xmp:Rating="5"/></rdf:RDF></x:xmpmeta>'
    )
    for name in ("a.xmp", "a.jpg.xmp"):
        (tmp_path / "in" / name).write_text(packet)
    assert run("options.strength=0") == []
    assert _files(tmp_path / "out") == ["a.png", "a.png.json", "a.png.xmp", "a.xmp"]
    copied = (tmp_path / "out/a.xmp").read_text()
    assert 'xmp:Rating="5"' in copied and 'tiff:Orientation="1"' in copied
    (tmp_path / "out/a.xmp").write_text("edited")
    (tmp_path / "out/a.png.xmp").unlink()
    assert run("options.strength=0", "options.quality=90") == []
    assert (tmp_path / "out/a.xmp").read_text() == "edited"
    assert (tmp_path / "out/a.png.xmp").read_text() == copied
    record = json.loads((tmp_path / "out/a.png.json").read_text())
    assert [note for note in record["notes"] if "a.xmp was there before" in note]


def test_inputs_are_never_replaced(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png")
    with pytest.raises(ValueError, match="input folder"):
        run(output="in")
    (tmp_path / "out").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="input folder"):
        run()


def test_limits_are_kept_and_named(run, tmp_path: Path) -> None:
    _photo(tmp_path / "in/a.png", (20, 28))
    (line,) = run("max_pixels=500")
    assert "28x20 pixels, limit 500" in line
    (line,) = run("options.scale=4", "max_output_pixels=5000")
    assert "112x80 pixels, limit 5000" in line


def test_settings_of_the_command_line_replace_those_of_the_checkpoint(run, tmp_path: Path) -> None:
    """The checkpoint records two steps with tau 0.05; presets are their own."""
    _photo(tmp_path / "in/a.png")

    def settings(*overrides: str) -> list:
        assert run(*overrides) == []
        record = json.loads((tmp_path / "out/a.png.json").read_text())
        return [record["options"]["settings"][name] for name in ("num_steps", "tau", "cfg_scale")]

    assert settings() == [2, 0.05, 1.0]
    assert settings("sampler.num_steps=1", "sampler.tau=null") == [1, None, 1.0]
    assert settings("preset=quality", "sampler.num_steps=1", "sampler.tau=3") == [1, 3, 6]


@pytest.mark.parametrize("preset", sorted(p.stem for p in (ROOT / "conf/preset").glob("*.yaml")))
def test_every_preset_restores(run, tmp_path: Path, preset: str) -> None:
    """With fewer steps, and `released` at less than its 1024 pixels."""
    _photo(tmp_path / "in/a.png")
    assert run(f"preset={preset}", "sampler.num_steps=2", "options.min_size=32") == []
    record = json.loads((tmp_path / "out/a.png.json").read_text())
    assert record["is_exact"] and read_photo(tmp_path / "out/a.png").rgb.shape == (3, 20, 28)


@pytest.mark.parametrize(
    "override, message",
    [
        ("options.strength=2", "strength"),
        ("+options.colour=1", "colour"),
        ("dtype=half", "dtype"),
        ("sampler.tile=7", "tile"),
    ],
)
def test_wrong_options_are_refused_by_name(
    run, tmp_path: Path, override: str, message: str
) -> None:
    _photo(tmp_path / "in/a.png")
    with pytest.raises(ValueError, match=message):
        run(override)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_an_interrupted_one_ends_well(
    stage_2: Path, tmp_path: Path
) -> None:
    for number in range(6):
        _photo(tmp_path / f"in/{number}.png", (64, 64), seed=number)
    command = [
        sys.executable, "-m", "src.restore", f"input={tmp_path / 'in'}",
        f"output={tmp_path / 'out'}", f"checkpoint={stage_2}", "device=cpu",
    ]  # fmt: skip

    def start() -> subprocess.Popen:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)  # fmt: skip
        have = len(list((tmp_path / "out").glob("*.json")))
        wait_for(
            lambda: (
                len(list((tmp_path / "out").glob("*.json"))) > have or process.poll() is not None
            ),
            what="one more photograph",
        )
        return process

    killed = start()
    killed.kill()
    killed.wait()
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()  # whole, whenever it was killed
    interrupted = start()
    interrupted.send_signal(signal.SIGINT)
    text, _ = interrupted.communicate(timeout=PATIENCE)
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    if interrupted.returncode:  # it was faster than the signal otherwise
        assert interrupted.returncode == 1 and "rerun the command" in text
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_records_are_strict_json(run, tmp_path: Path) -> None:
    """Infinity, the default of s_tmax, is no JSON."""
    _photo(tmp_path / "in/a.png")
    assert run("sampler.s_tmax=inf") == []

    def refuse(word: str) -> None:
        raise AssertionError(word)

    record = json.loads((tmp_path / "out/a.png.json").read_text(), parse_constant=refuse)
    assert record["options"]["settings"]["s_tmax"] is None


def test_a_result_that_is_no_number_fails_its_file_and_leaves_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder overflows on the first photograph only, and on every run."""
    real = AutoencoderKL.decode

    def overflowing(self, z):
        image = real(self, z)
        return image * float("nan") if image.shape[-1] == 32 else image

    _photo(tmp_path / "in/a.png", (20, 28))
    _photo(tmp_path / "in/b.png", (20, 44))
    monkeypatch.setattr(AutoencoderKL, "decode", overflowing)
    for _ in range(2):
        (line,) = run()
        assert "in/a.png: the cleaned image holds NaN or infinity" in line
        assert _files(tmp_path / "out") == ["b.png", "b.png.json"]
