from pathlib import Path

import pytest
import torch

from open_supir.inference import FileCaptioner, NoCaptioner

IMAGE = torch.zeros(3, 4, 4)


def test_no_captioner_says_nothing() -> None:
    assert NoCaptioner()(IMAGE, source=Path("x.png")) == ""


def test_file_captioner_reads_the_text_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("\ufeffA cat,\n asleep. \u732b\n", encoding="utf-8")
    assert FileCaptioner()(IMAGE, source=tmp_path / "cat.jpg") == "A cat, asleep. \u732b"


def test_file_captioner_reads_from_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("A cat.")
    assert FileCaptioner(tmp_path)(IMAGE, source=Path("/elsewhere/cat.jpg")) == "A cat."


def test_missing_caption_is_empty_or_refused(tmp_path: Path) -> None:
    assert FileCaptioner()(IMAGE, source=tmp_path / "cat.jpg") == ""
    assert FileCaptioner()(IMAGE) == ""
    with pytest.raises(FileNotFoundError, match="cat.txt"):
        FileCaptioner(required=True)(IMAGE, source=tmp_path / "cat.jpg")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\xd8", b"a" * 70000])
def test_what_is_no_caption_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cat.txt").write_bytes(content)
    with pytest.raises(ValueError, match="cat.txt"):
        FileCaptioner()(IMAGE, source=tmp_path / "cat.jpg")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FileCaptioner(tmp_path / "nowhere")
