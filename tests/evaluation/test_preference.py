"""The blinded preference study: page, key, votes, win rates."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from open_supir.base.images.write import write_image
from open_supir.evaluation.preference import draw_questions, read_votes, run_study

CHOICES = {"pairs": 8, "repeats": 2, "seed": 0}


@pytest.fixture
def preference(tmp_path: Path) -> dict:
    for method, value in (("ours", 10), ("theirs", 200)):
        for name in "abcdefgh":
            picture = torch.full((3, 8, 8), value + ord(name) - 97, dtype=torch.uint8)
            write_image(tmp_path / method / f"{name}.png", picture)
    folders = {name: str(tmp_path / name) for name in ("ours", "theirs")}
    return {"folders": folders, "lq": None, **CHOICES}


def _answer(study: Path, rater: str, favourite: str, ties: int = 0) -> dict:
    key = json.loads((study / "key.json").read_text())
    answers = {}
    for number, question in enumerate(key["questions"]):
        answers[number] = "left" if question["left"] == favourite else "right"
        if number < ties:
            answers[number] = "tie"
    sheet = {"study": key["study"], "rater": rater, "answers": answers}
    (study / f"votes_{rater}.json").write_text(json.dumps(sheet))
    return sheet


def test_every_pair_of_methods_is_asked_equally_often_on_both_sides() -> None:
    images = [str(i) for i in range(12)]
    asked = draw_questions(images, ["a", "b", "c"], pairs=36, repeats=5, seed=1)
    first = [q for q in asked if q.again is None]
    assert Counter(frozenset((q.left, q.right)) for q in first) == {
        frozenset("ab"): 12, frozenset("ac"): 12, frozenset("bc"): 12,
    }  # fmt: skip
    kept = sum(q.left < q.right for q in first)  # in alphabetical order: half of them
    assert kept == 18
    for q in asked[36:]:
        earlier = asked[q.again or 0]
        assert (q.image, q.left, q.right) == (earlier.image, earlier.right, earlier.left)
    assert asked == draw_questions(images, ["a", "b", "c"], pairs=36, repeats=5, seed=1)
    assert asked != draw_questions(images, ["a", "b", "c"], pairs=36, repeats=5, seed=2)


def test_page_is_blind_and_needs_no_network(preference: dict, tmp_path: Path) -> None:
    said = run_study(tmp_path / "study", preference)
    page = (tmp_path / "study/preference.html").read_text()
    assert "10 questions" in said
    assert "ours" not in page and "theirs" not in page and str(tmp_path) not in page
    assert "http" not in page and page.count("data:image/png;base64,") == 16
    assert "/*" not in page.replace("/* private window: the address is left */", "")


def test_where_one_picture_is_too_large_all_are_treated_alike(
    preference: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(Path(preference["folders"]["ours"]) / "a.png", torch.rand(3, 64, 64))
    monkeypatch.setattr("open_supir.evaluation.preference.PICTURE_BYTES", 5000)
    run_study(tmp_path / "study", preference)
    page = (tmp_path / "study/preference.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 16 and "image/png" not in page


def test_nothing_to_ask_is_refused(preference: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs >= 1 and repeats >= 0, got 0"):
        run_study(tmp_path / "study", {**preference, "pairs": 0})


def test_votes_become_win_rates_with_intervals(preference: dict, tmp_path: Path) -> None:
    study = tmp_path / "study"
    run_study(study, preference)
    with pytest.raises(FileNotFoundError, match="no votes"):
        run_study(study, {**preference, "folders": None})
    _answer(study, "one", "ours")
    _answer(study, "two", "ours")
    text = run_study(study, {**preference, "folders": None})
    (line,) = [line for line in text.splitlines() if "ours over theirs" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:5] == ["16", "0", "0", "1.000"]
    # Wilson: n / (n + z^2) with z = 1.95996 for 16 of 16; binomial: 2 / 2^16
    assert cells[5:] == [f"{16 / (16 + 1.95996**2):.3f}", "1.000", "0.0000"]
    assert "16 votes of 2 raters" in text and "in 4 of 4" in text
    assert (study / "results.csv").is_file()


def test_ties_count_for_nobody(preference: dict, tmp_path: Path) -> None:
    run_study(tmp_path, preference)
    _answer(tmp_path, "one", "theirs", ties=8)
    assert "n/a" in run_study(tmp_path, {**preference, "folders": None})


def test_votes_of_another_study_are_refused_by_name(preference: dict, tmp_path: Path) -> None:
    run_study(tmp_path, preference)
    sheet = _answer(tmp_path, "one", "ours")
    (tmp_path / "votes_two.json").write_text(json.dumps({**sheet, "study": "other"}))
    with pytest.raises(ValueError, match=r"votes_two.json: votes of study other"):
        read_votes(tmp_path)
    (tmp_path / "votes_two.json").write_text(json.dumps({**sheet, "answers": {"0": "up"}}))
    with pytest.raises(ValueError, match="question 0 has invalid answer 'up'"):
        read_votes(tmp_path)


def test_study_needs_two_folders_with_common_images(preference: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more"):
        run_study(tmp_path, {**preference, "folders": {"a": str(tmp_path / "ours")}})
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "empty/z.png", torch.zeros(3, 8, 8))
    folders = {**preference["folders"], "c": str(tmp_path / "empty")}
    with pytest.raises(ValueError, match="no image is in all"):
        run_study(tmp_path, {**preference, "folders": folders})
