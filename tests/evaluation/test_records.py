"""Records as files."""

from pathlib import Path

import pytest

from open_supir.evaluation.records import Record, read_records, write_records


def _record(value: float | None) -> Record:
    return Record(
        image="é/1", method="lq", metric="psnr", value=value, run="a",
        settings={"seed": 0, "crop": None}, status="ok" if value is not None else "not_finite",
        reason="" if value is not None else "psnr returned nan",
    )  # fmt: skip


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = [_record(23.456789012345), _record(None)]
    write_records(records, tmp_path / "deep" / "records.jsonl")
    assert read_records(tmp_path / "deep" / "records.jsonl") == records
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["records.jsonl"]


def test_write_records_keeps_the_old_file_when_a_value_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records([_record(1.0)], path)
    with pytest.raises(ValueError):
        write_records([_record(float("nan"))], path)
    assert read_records(path) == [_record(1.0)]


@pytest.mark.parametrize(("line", "said"), [("{", "not JSON"), ('{"image": "a"}', "lacks method")])
def test_read_records_names_the_bad_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "records.jsonl"
    write_records([_record(1.0)], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"records.jsonl, line 2: {said}"):
        read_records(path)
