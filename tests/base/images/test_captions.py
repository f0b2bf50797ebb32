"""Captions beside images: names and encodings as editors and tools write them."""

from pathlib import Path

import pytest

from open_supir.base.images.captions import caption_beside, decode_text

WORDS = "Zoë and Jürgen’s café, 1980 – “très joli”"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be",
                                      "utf-32", "cp1252"])  # fmt: skip
def test_known_encodings_are_read(encoding: str) -> None:
    assert decode_text(WORDS.encode(encoding)) == WORDS


def test_plain_latin_1_is_read() -> None:
    assert decode_text("Ein Größenvergleich in Ålesund".encode("latin-1")).endswith("Ålesund")


@pytest.mark.parametrize(
    ("words", "encoding"),
    [("фотография кота", "cp1251"), ("猫の写真", "shift_jis"), ("一张猫的照片", "gbk")],
)
def test_encodings_that_cannot_be_told_apart_are_refused(words: str, encoding: str) -> None:
    with pytest.raises(ValueError, match="unknown encoding: save it as UTF-8"):
        decode_text(words.encode(encoding))


@pytest.mark.parametrize("name", ["cat.txt", "cat.TXT", "cat.jpg.txt", "cat.jpg.TXT"])
def test_names_of_caption_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("A cat,\n asleep.\n")
    assert caption_beside(tmp_path / "cat.jpg") == "A cat, asleep."
    assert caption_beside(tmp_path / "dog.jpg") == ""


def test_a_long_caption_is_read_and_one_over_the_limit_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 5000)
    assert len(caption_beside(tmp_path / "a.jpg")) == 24999
    (tmp_path / "a.txt").write_text("word " * 20000)
    with pytest.raises(ValueError, match="a.txt: caption file larger than 65536 bytes"):
        caption_beside(tmp_path / "a.jpg")
