import json
from pathlib import Path

import pytest

from open_supir.curation.work import Unit, is_done, read_done, run_unit, unit_folder, unit_key
from tests.curation.toy import ToyStep, toy_units


def _run(step: ToyStep, unit: Unit, root: Path) -> None:
    run_unit(step.open(), step, unit, root)


def test_finished_unit_is_whole_and_is_not_done_again(tmp_path: Path) -> None:
    step, (unit,) = ToyStep(str(tmp_path)), toy_units(1)
    assert not is_done(tmp_path, step, unit)
    for _ in range(2):
        _run(step, unit, tmp_path)
    folder = unit_folder(tmp_path, "toy", "0")
    assert (folder / "square.txt").read_text() == "0" and is_done(tmp_path, step, unit)
    assert json.loads((folder / "done.json").read_text())["statistics"] == {"square": 0}
    assert len((tmp_path / "0.starts").read_text().split()) == 1


def test_failed_unit_leaves_nothing_behind(tmp_path: Path) -> None:
    step, (unit,) = ToyStep(str(tmp_path)), toy_units(1, u0="once")
    with pytest.raises(OSError, match="on fire"):
        _run(step, unit, tmp_path)
    assert not list((tmp_path / "toy").iterdir())
    _run(step, unit, tmp_path)
    assert is_done(tmp_path, step, unit)


def test_unit_of_other_content_settings_or_step_is_made_again(tmp_path: Path) -> None:
    step, (unit,) = ToyStep(str(tmp_path)), toy_units(1)
    _run(step, unit, tmp_path)
    other = Unit("0", "other content")
    assert not is_done(tmp_path, step, other)
    _run(step, other, tmp_path)
    assert is_done(tmp_path, step, other) and not is_done(tmp_path, step, unit)
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["0"]

    class Renamed(ToyStep):
        def settings(self) -> dict:
            return {"size": 2}

    assert unit_key(Renamed(str(tmp_path)), unit) != unit_key(step, unit)


def test_what_a_killed_attempt_left_is_swept_and_never_taken_for_done(tmp_path: Path) -> None:
    step, (unit,) = ToyStep(str(tmp_path)), toy_units(1)
    left = tmp_path / "toy" / ".0.otherhost.123.tmp"
    left.mkdir(parents=True)
    (left / "done.json").write_text(json.dumps({"key": unit_key(step, unit)}))
    assert not is_done(tmp_path, step, unit)
    _run(step, unit, tmp_path)
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["0"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_damaged_marker_means_not_done(tmp_path: Path, content: bytes) -> None:
    step, (unit,) = ToyStep(str(tmp_path)), toy_units(1)
    _run(step, unit, tmp_path)
    marker = unit_folder(tmp_path, "toy", "0") / "done.json"
    marker.write_bytes(content)
    assert read_done(marker.parent) is None and not is_done(tmp_path, step, unit)
