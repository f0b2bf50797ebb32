import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from open_supir.curation.reading import read_candidates
from open_supir.curation.sources import InputSettings, list_units, name_inputs
from open_supir.curation.work import Unit
from tests.data.made import good_members, jpeg, tar_bytes


def _folder(path: Path, names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names.split():
        (path / name).write_bytes(jpeg())
    return path


def _read(units: list[Unit]) -> list:
    return [c for unit in units for c in read_candidates(unit, keep_keys=False)]


def test_folder_is_split_into_units_and_each_image_is_in_one(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", "a.jpg b.png c.webp d.jpg e.jpg")
    (folder / "a.txt").write_text("words about a\n")
    (folder / "notes.md").write_text("no image")
    settings = InputSettings(paths={"s": str(folder)}, licences={"s": "CC0"}, unit_size=2)
    units = list_units(settings, tmp_path / "work")
    read = _read(units)
    assert [unit.name for unit in units] == ["000000", "000001", "000002"]
    *read, note = read
    assert note.error is not None and note.error.reason == "not an image"
    assert [Path(c.path).name for c in read] == ["a.jpg", "b.png", "c.webp", "d.jpg", "e.jpg"]
    assert len({c.key for c in read}) == 5
    assert {(c.source, c.licence) for c in read} == {("s", "CC0")}
    assert read[0].caption == "words about a" and read[1].caption is None


def test_plan_is_kept_until_a_rescan_which_renames_nothing(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", "b.jpg c.jpg d.jpg")
    settings = InputSettings(paths={"s": str(folder)}, unit_size=2)
    before = list_units(settings, tmp_path / "work")
    _folder(folder, "a.jpg")
    (folder / "d.jpg").write_bytes(jpeg(7))
    assert list_units(settings, tmp_path / "work") == before
    after = list_units(settings, tmp_path / "work", rescan=True)
    assert after[0] == before[0] and after[1].name == before[1].name
    assert after[1].content != before[1].content  # d.jpg has changed
    assert [Path(c.path).name for c in _read(after)] == ["b.jpg", "c.jpg", "d.jpg", "a.jpg"]


def test_key_depends_on_source_and_place_below_the_input_alone(tmp_path: Path) -> None:
    keys = []
    for place in ("one", "two"):
        folder = _folder(tmp_path / place, "a.jpg b.jpg")
        units = list_units(InputSettings(paths={"s": str(folder)}), tmp_path / f"work {place}")
        keys.append([c.key for c in _read(units)])
    other = list_units(InputSettings(paths={"t": str(tmp_path / "one")}), tmp_path / "work t")
    assert keys[0] == keys[1]
    assert not {c.key for c in _read(other)} & set(keys[0])


def test_tars_are_units_and_parquet_lists_name_paths(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _folder(tmp_path / "in", "a.jpg b.jpg")
    (tmp_path / "tars").mkdir()
    for name in ("00000.tar", "00001.tar"):
        (tmp_path / "tars" / name).write_bytes(tar_bytes(good_members(3)))
    table = pa.table({
        "path": ["in/a.jpg", "in/b.jpg", "in/gone.jpg", "in/a.jpg"],
        "caption": ["an a", None, None, "again"],
        "licence": ["CC-BY", None, None, None],
        "source": ["wiki", None, None, "wiki"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "list.parquet")
    paths = {"list": str(tmp_path / "list.parquet"), "t": str(tmp_path / "tars")}
    settings = InputSettings(paths=paths, licences={"list": "unknown"})
    with caplog.at_level(logging.WARNING):
        units = list_units(settings, tmp_path / "work")
    assert [unit.inputs["kind"] for unit in units] == ["files", "tar", "tar"]
    assert "listed twice" in caplog.text
    read = _read(units)
    assert len(read) == 3 + 6 and len({c.key for c in read}) == 9
    assert (read[0].caption, read[0].licence, read[0].source) == ("an a", "CC-BY", "wiki")
    assert (read[1].licence, read[1].source) == ("unknown", "list")
    assert read[2].error is not None and read[2].error.reason == "file missing"
    assert read[3].caption == "cap 0"


def test_output_of_other_inputs_is_not_mixed_up(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", "a.jpg")
    list_units(InputSettings(paths={"s": str(folder)}), tmp_path / "work")
    with pytest.raises(ValueError, match="other inputs"):
        list_units(InputSettings(paths={"s": str(folder)}, unit_size=5), tmp_path / "work")


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "list.parquet")
    for path, error, words in [
        (tmp_path / "list.parquet", ValueError, "no column 'path'; it has file"),
        (tmp_path / "nowhere", FileNotFoundError, "nowhere"),
        (_folder(tmp_path / "empty", ""), ValueError, "no images"),
    ]:
        with pytest.raises(error, match=words):
            list_units(InputSettings(paths={"s": str(path)}), tmp_path / "work")
    with pytest.raises(ValueError, match="sources that are not in input"):
        InputSettings(paths={"s": "x"}, licences={"other": "CC0"})


def test_inputs_are_named_after_their_paths() -> None:
    assert name_inputs("photos/a") == {"a": "photos/a"}
    assert name_inputs(["a/x.parquet", "b/y"]) == {"x": "a/x.parquet", "y": "b/y"}
    assert name_inputs({"one": "a/x"}) == {"one": "a/x"}
    with pytest.raises(ValueError, match="same name"):
        name_inputs(["a/x", "b/x"])


def test_lists_with_the_same_source_and_names_are_different_images(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _folder(tmp_path / name, "a.jpg")
        table = pa.table({"path": ["a.jpg"], "source": ["wiki"], "license": ["CC-BY"]})
        pq.write_table(table, tmp_path / name / f"{name}.parquet")
    paths = {n: str(tmp_path / n / f"{n}.parquet") for n in ("one", "two")}
    read = _read(list_units(InputSettings(paths=paths), tmp_path / "work"))
    assert [Path(c.path).parent.name for c in read] == ["one", "two"]
    assert {(c.source, c.licence) for c in read} == {("wiki", "CC-BY")}


def test_addresses_in_a_list_are_img2datasets_job(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["http://x/a.jpg"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="http://x/a.jpg is not a path; run img2dataset"):
        list_units(InputSettings(paths={"s": str(tmp_path / "list.parquet")}), tmp_path / "work")


def test_folder_of_images_and_tars_gives_both_but_not_what_the_pipeline_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path / "in", "a.jpg")
    for tar in ("t.tar", "out/work/filter/000000/000000.tar", "out/shards/positive/p.tar"):
        (folder / tar).parent.mkdir(parents=True, exist_ok=True)
        (folder / tar).write_bytes(tar_bytes(good_members(2)))
    own = tuple(str(folder / "out" / name) for name in ("work", "shards"))
    monkeypatch.chdir(tmp_path)
    units = list_units(InputSettings(paths={"s": "in"}, exclude=own), folder / "out" / "work")
    monkeypatch.chdir("/")
    assert [unit.inputs["kind"] for unit in units] == ["files", "tar"]
    assert [c.error for c in _read(units)] == [None] * 3  # found from any folder


def test_what_is_no_input_is_listed_with_its_reason(tmp_path: Path) -> None:
    """Linked folders are read; broken links, archives and other files have a row each."""
    far = _folder(tmp_path / "far", "far.jpg")
    folder = _folder(tmp_path / "in", "a.jpg b.jfif c.jpe d.gif")
    (folder / "linked").symlink_to(far)
    (folder / "circle").symlink_to(folder)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "gone").symlink_to("nowhere")
    for name in ("old.tar.gz", "raw.cr2", "list.csv", ".hidden"):
        (folder / name).write_bytes(b"x")
    read = _read(list_units(InputSettings(paths={"s": str(folder)}), tmp_path / "work"))
    names = {Path(c.path).name: c.error and c.error.reason for c in read}
    assert names == {
        "far.jpg": None, "a.jpg": None, "b.jfif": None, "c.jpe": None, "d.gif": None,
        "gone.jpg": "file missing", "gone": "link leads nowhere", "old.tar.gz": "archive",
        "raw.cr2": "not an image", "list.csv": "not an image", "circle": "folder is read already",
    }  # fmt: skip
    assert len({c.key for c in read}) == len(read)


def test_captions_of_any_name_and_encoding_are_read_or_listed(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "in", "a.jpg b.jpg c.jpg d.jpg e.jpg")
    (folder / "a.TXT").write_bytes("Zoë".encode("latin-1"))
    (folder / "b.jpg.txt").write_bytes("un été".encode("utf-16"))
    (folder / "c.txt").write_text("word " * 5000)
    (folder / "d.txt").write_bytes("кошка на крыше".encode("cp1251"))
    read = _read(list_units(InputSettings(paths={"s": str(folder)}), tmp_path / "work"))
    captions = {Path(c.path).name: c.caption for c in read if c.error is None}
    assert captions.pop("c.jpg") == " ".join(["word"] * 5000)
    assert captions == {"a.jpg": "Zoë", "b.jpg": "un été", "d.jpg": None, "e.jpg": None}
    (bad,) = [c for c in read if c.error is not None]
    assert Path(bad.path).name == "d.txt" and bad.error is not None
    assert bad.error.reason == "caption cannot be read" and "UTF-8" in bad.error.detail
