"""Tables made from records."""

from pathlib import Path

import pytest
import torch

from open_supir.base.images.write import write_image
from open_supir.evaluation.benchmark import picture_path
from open_supir.evaluation.means import average_records
from open_supir.evaluation.records import Record, Status, read_records, write_records
from open_supir.evaluation.report import mean_table, write_report


def _record(
    image: str,
    method: str,
    metric: str,
    value: float | None,
    reason: str = "",
    status: Status | None = None,
) -> Record:
    usual = "ok" if value is not None else "missing_weights" if image == "*" else "restore_failed"
    return Record(
        image=image, method=method, metric=metric, value=value, run="a", settings={},
        status=status or usual, reason=reason,
    )  # fmt: skip


@pytest.fixture
def records() -> list[Record]:
    """Two methods, two images; LPIPS has no weights and `restored` fails once."""
    rows = [
        _record("a", "lq", "psnr", 20.0),
        _record("b", "lq", "psnr", 25.0),
        _record("a", "lq", "sharpness", 5.0),
        _record("b", "lq", "sharpness", 6.0),
        _record("a", "encoder", "psnr", 24.0),
        _record("b", "encoder", "psnr", 26.0),
        _record("a", "restored", "psnr", 30.0),
        _record("b", "restored", "psnr", None, "RuntimeError: boom"),
    ]
    missing = "~/hub/alexnet.pth not found; download https://example.org/alexnet.pth"
    return rows + [_record("*", m, "lpips", None, missing) for m in ("lq", "encoder", "restored")]


def _cells(markdown: str, row: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_report_shows_means_arrows_counts_and_the_best(
    records: list[Record], tmp_path: Path
) -> None:
    text = write_report(records, tmp_path)
    assert _cells(text, "method") == ["method", "PSNR ↑", "Sharpness"]
    assert _cells(text, "lq") == ["lq", "22.50", "5.5"]
    # the best of the methods that count every image; one lucky image does not win
    assert _cells(text, "encoder") == ["encoder", "**25.00**", "n/a"]
    assert _cells(text, "restored") == ["restored", "30.00 (n=1/2)", "n/a"]


def test_metrics_without_any_value_are_one_line_below_the_table(
    records: list[Record], tmp_path: Path
) -> None:
    small = [
        _record("*", m, "fid", None, "fewer than 50 images", status="too_small")
        for m in ("lq", "encoder", "restored")
    ]
    text = write_report(records + small, tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("Not measured: ")]
    assert len(lines) == 1
    assert "FID (fewer than 50 images)" in lines[0] and "LPIPS (weights are absent" in lines[0]
    assert "metrics.download=true" in lines[0]
    csv = (tmp_path / "table.csv").read_text()
    assert "https://example.org/alexnet.pth" in csv  # which file, and from where


def test_report_lists_what_was_left_out(records: list[Record], tmp_path: Path) -> None:
    text = write_report(records, tmp_path)
    assert "- b, restored (psnr): RuntimeError: boom" in text


def test_report_files_hold_summary_and_images(records: list[Record], tmp_path: Path) -> None:
    text = write_report(records, tmp_path, title="Demo")
    page = (tmp_path / "table.md").read_text()
    assert text.startswith("# Demo\n") and page.startswith(text)
    assert "restore failed" in page
    assert "encoder,psnr,25.0,2,2,higher,\n" in (tmp_path / "table.csv").read_text()
    lines = (tmp_path / "per_image.csv").read_text().splitlines()
    assert lines[0] == "run,image,method,metric,value,status,reason"
    assert len(lines) == 1 + len(records)


def test_report_from_the_written_records_is_identical(
    records: list[Record], tmp_path: Path
) -> None:
    write_records(records, tmp_path / "records.jsonl")
    first = write_report(records, tmp_path / "first")
    second = write_report(read_records(tmp_path / "records.jsonl"), tmp_path / "second")
    assert first == second
    for name in ("table.md", "table.csv", "per_image.csv", "report.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_best_marks_ties_and_the_lower_where_lower_is_better() -> None:
    rows = [
        _record("a", "x", "psnr", 20.001),
        _record("a", "y", "psnr", 20.004),  # equal as shown
        _record("a", "x", "niqe", 3.0),
        _record("a", "y", "niqe", 4.0),
        _record("a", "x", "sharpness", 1.0),
        _record("a", "y", "sharpness", 2.0),
    ]
    table = average_records(rows)
    assert table.best("psnr") == {"x", "y"}
    assert table.best("niqe") == {"x"}
    assert table.best("sharpness") == set()


def test_report_page_shows_the_saved_pictures(records: list[Record], tmp_path: Path) -> None:
    for method in ("lq", "encoder", "hq"):
        write_image(picture_path(tmp_path / "images", method, "a"), torch.zeros(3, 8, 8))
    write_report(records, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "<b>25.00</b>" in page and 'src="http' not in page


def test_means_over_other_images_do_not_compete() -> None:
    rows = [
        _record("a", "x", "psnr", 20.0),
        _record("b", "x", "psnr", None, "RuntimeError: boom"),
        _record("a", "y", "psnr", None, "RuntimeError: boom"),
        _record("b", "y", "psnr", 30.0),
    ]
    assert average_records(rows).best("psnr") == set()
    assert average_records([row for row in rows if row["image"] == "a"]).best("psnr") == set()
    same = [*rows[:2], _record("a", "y", "psnr", 21.0), rows[3] | {"value": None}]
    assert average_records(same).best("psnr") == {"y"}  # type: ignore[arg-type]


def test_report_refuses_no_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no records"):
        write_report([], tmp_path)


def test_value_of_an_incomplete_set_says_so_and_does_not_compete() -> None:
    def row(method: str, value: float, reason: str) -> Record:
        return Record(
            image="*", method=method, metric="fid", value=value, run="x", settings={},
            status="ok", reason=reason,
        )  # fmt: skip

    table = average_records([row("a", 10.0, ""), row("b", 9.0, "98 of 100 images")])
    means = mean_table(table)
    assert [line[1] for line in means.rows] == ["10.00", "9.00 [1]"]
    assert means.notes == ["[1] FID ↓: 98 of 100 images"]
