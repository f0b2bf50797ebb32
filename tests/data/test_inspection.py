"""python -m src.check: what it finds, builds and refuses."""

import os
import sys
from pathlib import Path

import pytest

from open_supir.commands.check import main
from open_supir.data.inspection import (
    InspectSettings,
    inspect_folder,
    inspect_folders,
    shard_folders,
    verdict,
)
from open_supir.data.samples import ImageLimits
from open_supir.data.shards import ShardFolder, index_path, read_manifest
from tests.data.made import good_members, jpeg, shard_folder, tar_bytes

SETTINGS = InspectSettings(limits=ImageLimits(min_side=32))


def test_whole_folder_has_nothing_to_report(tmp_path: Path) -> None:
    shard_folder(tmp_path, [3, 4])
    report = inspect_folder(tmp_path, InspectSettings(hash=True, samples_per_shard=-1))
    assert (report.shards, report.samples, report.decoded, report.bad) == (2, 7, 7, 0)
    assert not report.faults and not report.skipped and not report.built
    assert verdict([report], 0.0) is None


def test_tars_of_others_get_index_and_manifest(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([*good_members(4), ("a.pyd", b"code")]))
    report = inspect_folder(tmp_path, SETTINGS)
    assert report.built == ["x.index.npy", "manifest.json"] and not report.faults
    assert report.skipped == {"suffix not jpg, jpeg, png, webp, txt or json": 1}
    folder = ShardFolder(tmp_path, read_manifest(tmp_path))
    assert [folder.read(0, i).text for i in range(4)] == [b"cap %d" % i for i in range(4)]
    assert inspect_folder(tmp_path, SETTINGS).built == []


def test_nothing_is_written_when_building_is_off(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(good_members(2)))
    report = inspect_folder(tmp_path, InspectSettings(build=False))
    assert len(report.faults) == 2 and [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_damaged_missing_and_changed_shards_are_faults(tmp_path: Path) -> None:
    shard_folder(tmp_path, [2, 2, 2, 2])
    os.remove(tmp_path / "s-000.tar")
    os.truncate(tmp_path / "s-001.tar", 1000)
    (tmp_path / "s-002.tar").write_bytes(tar_bytes(good_members(3)))
    (tmp_path / "extra.tar").write_bytes(tar_bytes(good_members(3)))
    report = inspect_folder(tmp_path, SETTINGS)
    faults = " | ".join(report.faults)
    assert len(report.faults) == 4 and report.shards == 1
    for text in ("s-000.tar: listed", "s-001.tar: trunc", "s-002.tar: ", "extra.tar: not listed"):
        assert text in faults
    assert "4 faulty shards" in str(verdict([report], 1.0))


def test_flipped_bytes_are_found_by_the_hash(tmp_path: Path) -> None:
    shard_folder(tmp_path, [2])
    path = tmp_path / "s-000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    report = inspect_folder(tmp_path, InspectSettings(hash=True))
    assert report.faults == ["s-000.tar: sha256 differs from manifest.json"]


def test_wrong_index_is_rebuilt(tmp_path: Path) -> None:
    shard_folder(tmp_path, [2, 2])
    index_path(tmp_path / "s-000.tar").write_bytes(b"garbage")
    report = inspect_folder(tmp_path, SETTINGS)
    assert report.built == ["s-000.index.npy"] and not report.faults
    assert inspect_folder(tmp_path, SETTINGS).built == []


def test_refused_samples_count_by_reason_and_against_the_limit(tmp_path: Path) -> None:
    members = [*good_members(8), ("bad.jpg", jpeg()[:900]), ("bad.txt", b"c"), ("no.jpg", jpeg())]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    report = inspect_folder(tmp_path, SETTINGS)
    assert report.skipped == {"damaged image": 1, "caption missing": 1}
    assert (report.decoded, report.bad) == (10, 2)
    assert "x.tar: bad" in report.examples["damaged image"][0]
    assert verdict([report], 0.2) is None
    wrong = str(verdict([report], 0.1))
    assert "2 of 10" in wrong and "settings.missing_caption=empty accepts those" in wrong
    lenient = InspectSettings(missing_caption="empty", limits=ImageLimits(min_side=32))
    assert inspect_folder(tmp_path, lenient).bad == 1


def test_folders_are_found_below_the_root(tmp_path: Path) -> None:
    shard_folder(tmp_path / "a", [1])
    shard_folder(tmp_path / "b" / "c", [1])
    assert shard_folders(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    assert len(inspect_folders(str(tmp_path), SETTINGS)) == 2
    with pytest.raises(FileNotFoundError, match="data.root=.*nowhere: no such folder"):
        shard_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tars"):
        shard_folders(tmp_path / "empty")


def test_of_a_curated_folder_only_the_shards_count(tmp_path: Path) -> None:
    """Training reads none of the tars of the steps in between."""
    for folder in ("shards/positive", "work/filter/000000"):
        shard_folder(tmp_path / folder, [1])
    assert shard_folders(tmp_path) == [tmp_path / "shards/positive"]


def test_empty_tar_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([]))
    assert "no samples" in inspect_folder(tmp_path, SETTINGS).faults[0]


def test_command_prints_the_tables_and_its_exit_status_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Builds the index of a foreign tar; 3 of 12 samples are bad: fine up to the limit only."""
    members = [*good_members(9), ("b1.jpg", jpeg()[:900]), ("b1.txt", b"c"), ("b2.jpg", jpeg())]
    members += [("b3.jpg", b"<html>"), ("b3.txt", b"c")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    command = ["check", f"data.root={tmp_path}", "settings.samples_per_shard=-1"]
    monkeypatch.setattr(sys, "argv", [*command, "limit=0.25"])
    main()
    shown = capsys.readouterr().out
    assert index_path(tmp_path / "x.tar").exists() and "fit for training" in shown
    for reason in ("damaged image", "caption missing", "not a JPEG"):
        assert reason in shown
    monkeypatch.setattr(sys, "argv", [*command, "limit=0.2"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert "not fit for training: 3 of 12 decoded samples were refused" in str(stopped.value.code)


def test_linked_folders_are_checked(tmp_path: Path) -> None:
    """Training reads them."""
    shard_folder(tmp_path / "far", [2])
    os.truncate(tmp_path / "far/s-000.tar", 1000)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/positive").symlink_to(tmp_path / "far")
    assert shard_folders(tmp_path / "set") == [tmp_path / "set/positive"]
    reports = inspect_folders(str(tmp_path / "set"), SETTINGS)
    assert "faulty" in str(verdict(reports, 0.5))
