"""Uploads: batches laid out as a folder, and pictures that browsers can show."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from open_supir.base.images import read_photo
from open_supir.inference import RestoreOptions
from open_supir.webui.uploads import Source, lay_out, shown
from open_supir.webui.words import duration, planned, time_left


def _zip(path: Path, contents: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return str(path)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (90, 120, 30)).save(file, "PNG")
    return file.getvalue()


def _laid(files: list[str], folder: Path, **limits: int):
    folder.mkdir(exist_ok=True)
    return lay_out(files, folder, **({"max_files": 9, "max_bytes": 10**5} | limits))


def test_a_zip_keeps_its_tree_and_texts_are_captions(tmp_path: Path) -> None:
    packed = _zip(tmp_path / "album.zip", {
        "album/1980/a.png": _png(), "album/1980/a.txt": "Zo\xeb at sea".encode("latin-1"),
        "album/b.png": _png(), "album/b.txt": b"a house", "album/film.mp4": b"film",
        "__MACOSX/b.png": b"", "album/.hidden.png": b"",
    })  # fmt: skip
    (tmp_path / "b.png").write_bytes(_png())
    batch = _laid([packed, str(tmp_path / "b.png")], tmp_path / "work")
    names = [batch.name(path) for path in batch.paths]
    assert names == ["album/1980/a.png", "album/b.png", "b.png"]
    assert batch.captions["album/b.png"] == "a house" and batch.captions["b.png"] == ""
    assert any(".mp4 1" in note for note in batch.notes)
    asked = batch.captioned([["b.png", "a boat"], ["album/b.png", ""]])
    assert (asked["b.png"], asked["album/b.png"]) == ("a boat", "")


def test_uploads_of_one_name_are_both_kept(tmp_path: Path) -> None:
    files = []
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(_png())
        files.append(str(tmp_path / folder / "a.png"))
    batch = _laid(files, tmp_path / "work")
    assert [batch.name(path) for path in batch.paths] == ["a.png", "a_2.png", "a_3.png"]


def test_a_zip_leads_nowhere_else(tmp_path: Path) -> None:
    packed = _zip(tmp_path / "evil.zip", {"../../out.png": _png(), "/abs.png": _png()})
    batch = _laid([packed], tmp_path / "work")
    assert [batch.name(path) for path in batch.paths] == ["abs.png"]
    assert not [*tmp_path.rglob("out.png")]
    assert all(path.resolve().is_relative_to(tmp_path / "work") for path in batch.paths)


def test_limits_and_damaged_archives_are_refused_in_words(tmp_path: Path) -> None:
    packed = _zip(tmp_path / "a.zip", {f"{n}.png": _png() for n in range(4)})
    with pytest.raises(ValueError, match="4 images, limit 3; set max_files="):
        _laid([packed], tmp_path / "few", max_files=3)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    with pytest.raises(ValueError, match="bomb.zip holds 1000000 bytes, limit 100000"):
        _laid([str(bomb)], tmp_path / "bombed")
    whole = Path(packed).read_bytes()
    at = whole.index(b"IHDR")
    (tmp_path / "cut.zip").write_bytes(whole[:at] + b"XXXX" + whole[at + 4 :])
    with pytest.raises(ValueError, match="cut.zip cannot be unpacked"):
        _laid([str(tmp_path / "cut.zip")], tmp_path / "cut")
    with pytest.raises(ValueError, match="no images"):
        _laid([_zip(tmp_path / "none.zip", {"a.mp4": b"film"})], tmp_path / "none")


def test_what_browsers_cannot_show_gets_a_picture_of_its_colours(tmp_path: Path) -> None:
    """A 16-bit TIFF; a JPEG of quality 85 keeps a plain colour to a few levels."""
    colour = (200, 90, 40)
    tifffile.imwrite(tmp_path / "a.tif", np.full((30, 40, 3), colour, np.uint16) * 257)
    photo = read_photo(tmp_path / "a.tif")
    path = shown(str(tmp_path / "a.tif"), photo, tmp_path)
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (40, 30)
        assert np.abs(np.asarray(picture)[15, 20].astype(int) - colour).max() <= 3
    source = Source(path=str(tmp_path / "a.tif"), shown=path, size=(30, 40))
    assert source.is_shown_as(f"/elsewhere/{Path(path).name}") and source.name == "a.tif"
    assert not source.is_shown_as("/elsewhere/a.tif")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    path = str(tmp_path / "b.png")
    assert shown(path, read_photo(tmp_path / "b.png"), tmp_path) == path


def test_words_for_times_and_sizes() -> None:
    said = [duration(s) for s in (3.42, 9.96, 24, 99.4, 125, 7800)]
    assert said == ["3.4 s", "10 s", "24 s", "99 s", "2 min 5 s", "2 h 10 min"]
    left = [time_left(s) for s in (0.2, 24, 170, 7000)]
    assert left == [
        "about 1 s left",
        "about 24 s left",
        "about 3 min left",
        "about 1 h 57 min left",
    ]
    options = RestoreOptions(scale=2, num_samples=3, min_size=256)
    text = "Input 60 x 40, 3 results of 120 x 80 pixels, worked on at 384 x 256"
    assert planned((40, 60), options) == text
