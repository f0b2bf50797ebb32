"""All steps in this process, and what later runs do."""

import csv
import json
import re
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from open_supir.curation import filters, shard_layout
from open_supir.curation.caption import quadrants
from open_supir.curation.negatives import negative_seed
from open_supir.curation.pipeline import STEPS, Pipeline, UnitsFailed
from open_supir.curation.runners import LocalRunner
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.sources import InputSettings
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep, ScoreStep
from open_supir.curation.tables import read_rows
from open_supir.curation.thresholds import MEASURES, Thresholds
from open_supir.curation.work import Blueprint, alone
from open_supir.data.inspection import InspectSettings, inspect_folder
from open_supir.data.samples import ImageLimits, decode_training_image
from open_supir.data.shards import ShardFolder, read_manifest
from tests.curation.conftest import BAD, GOOD
from tests.curation.toy import WORDS, mean_captioner, settings

HERE = LocalRunner(num_workers=0)
LIMITS = ImageLimits(min_side=8)


def run(candidates: Path, output: Path, steps=STEPS, **changes) -> None:
    Pipeline(settings(candidates, output, **changes), HERE).run(steps)


def shards(output: Path, source: str) -> list:
    folder = output / "shards" / source
    entries = read_manifest(folder)
    opened = ShardFolder(folder, entries)
    return [opened.read(s, i) for s, entry in enumerate(entries) for i in range(entry.count)]


def statistics(output: Path, step: str, unit: str = "all") -> dict:
    return json.loads((output / "work" / step / unit / "done.json").read_text())["statistics"]


@pytest.fixture(scope="module")
def built(candidates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built")
    run(candidates, output)
    return output


def test_every_candidate_has_one_row_and_every_good_one_one_sample(built: Path) -> None:
    rows = [r for p in (built / "work/filter").iterdir() for r in read_rows(p / "rows.parquet")]
    reasons = {Path(row["path"]).name: row["reason"] for row in rows}
    assert len(rows) == GOOD + len(BAD) + 1
    assert {name: reasons[name] for name in BAD} == BAD
    kept = shards(built, "positive")
    stored = {row["key"] for row in rows if row["reason"] is None}
    flat = {row["key"] for row in rows if row["path"].endswith("flat.png")}
    assert Counter(sample.key for sample in kept) == Counter(stored - flat)
    assert statistics(built, "select")["refused"] == {"contrast below 5": 1}


def test_shards_are_fit_for_training(built: Path) -> None:
    for source in ("positive", "negative"):
        report = inspect_folder(
            built / "shards" / source,
            InspectSettings(samples_per_shard=-1, hash=True, limits=LIMITS),
        )
        assert not report.faults and not report.skipped and not report.built
        assert report.samples == {"positive": GOOD, "negative": 5}[source]


def test_samples_carry_caption_source_licence_and_scores(built: Path) -> None:
    for sample in shards(built, "positive"):
        meta = json.loads(sample.meta)
        pixels = decode_training_image(sample.image, LIMITS)
        assert sample.text.decode() == f"an image of mean {pixels.astype(float).mean() / 255:.4f}"
        assert meta["source"] == "photos" and meta["licence"] == "CC0"
        assert meta["original_size"] == [64, 80] and meta["scores"]["jpeg_quality"] == 95


def test_shuffle_is_global_and_a_function_of_the_seed(
    built: Path, candidates: Path, tmp_path: Path
) -> None:
    order = [sample.key for sample in shards(built, "positive")]
    run(candidates, tmp_path, num_negatives=0)
    assert [sample.key for sample in shards(tmp_path, "positive")] == order
    layout = ShardLayoutStep(source="positive", origin="filter", shard_size=6, seed=1)
    run(candidates, tmp_path, num_negatives=0, positives=layout)
    other = [sample.key for sample in shards(tmp_path, "positive")]
    assert other != order and sorted(other) == sorted(order)
    tars = {path.name for path in (tmp_path / "shards/positive").glob("*.tar")}
    assert tars == {entry.name for entry in read_manifest(tmp_path / "shards/positive")}
    in_order = [r["key"] for p in sorted((built / "work/filter").iterdir())
                for r in read_rows(p / "rows.parquet") if r["key"] in set(order)]  # fmt: skip
    assert order != in_order


def _plan(output: Path) -> dict[str, list]:
    folder = output / "work/shards-layout-positive/all"
    assert {p.suffix for p in folder.iterdir()} == {".json", ".parquet"}  # no scratch files
    return {path.stem: read_rows(path) for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("shuffle", [True, False])
def test_layout_made_in_parts_is_that_made_at_once(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    layout = ShardLayoutStep(source="positive", origin="filter", shard_size=3, shuffle=shuffle)
    for name, block in (("once", 1000), ("parts", 7)):
        monkeypatch.setattr(shard_layout, "BLOCK", block)
        run(candidates, tmp_path / name, num_negatives=0, positives=layout)
    assert _plan(tmp_path / "parts") == _plan(tmp_path / "once")
    assert [len(rows) for _, rows in sorted(_plan(tmp_path / "once").items())] == [3] * 6 + [2]
    once, parts = (statistics(tmp_path / n, "shards-layout-positive") for n in ("once", "parts"))
    assert parts == once


def test_keys_of_the_same_hash_are_told_from_keys_that_come_twice(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardLayoutStep, "_order", lambda self, key: 7)
    run(candidates, tmp_path / "made", num_negatives=0)
    assert len({raw.key for raw in shards(tmp_path / "made", "positive")}) == GOOD
    tars = tmp_path / "made/shards/positive"
    again = tars.with_name("again")
    shutil.copytree(tars, again)
    changes = dict(filter=FilterStep(size=48, min_side=48, keep_keys=True), dedup=None)
    paths = {"one": str(tars), "two": str(again)}
    with pytest.raises(UnitsFailed, match=f"{GOOD} keys occur twice"):
        twice = InputSettings(paths=paths)
        run(candidates, tmp_path / "twice", num_negatives=0, input=twice, **changes)


def test_negatives_come_from_positives_with_the_words_and_a_seed_of_their_key(built: Path) -> None:
    positives = {sample.key: sample for sample in shards(built, "positive")}
    for sample in shards(built, "negative"):
        meta = json.loads(sample.meta)
        origin = positives[meta["of"]]
        assert sample.text.decode() == WORDS and meta["is_negative"] is True
        assert meta["content"] == origin.text.decode() and meta["licence"] == "CC0"
        before, after = (
            decode_training_image(s.image, LIMITS).astype(float) for s in (origin, sample)
        )
        shift = negative_seed(0, meta["of"]) % 7 / 100
        expected = (255 * (1 - before / 255 * 0.5 + shift)).clip(0, 255)
        assert np.abs(after - expected).mean() < 3  # JPEG of quality 95


def test_more_negatives_are_a_superset_of_fewer(
    built: Path, candidates: Path, tmp_path: Path
) -> None:
    run(candidates, tmp_path, num_negatives=9)
    more = {sample.key for sample in shards(tmp_path, "negative")}
    assert len(more) == 9 and more > {sample.key for sample in shards(built, "negative")}


def _stamps(output: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}


def test_second_run_touches_nothing(built: Path, candidates: Path) -> None:
    before = _stamps(built)
    run(candidates, built)
    assert _stamps(built) == before


def test_changed_thresholds_decode_nothing_again(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    caption = CaptionStep(captioner=mean_captioner(str(asked)), cache=str(tmp_path / "cache"))
    run(candidates, tmp_path / "out", caption=caption, num_negatives=0)
    first = len(asked.read_text().splitlines())
    sharp = [
        row["sharpness"]
        for path in (tmp_path / "out/work/filter").iterdir()
        for row in read_rows(path / "rows.parquet", ["sharpness"])
        if row["sharpness"] is not None
    ]
    monkeypatch.setattr(filters, "decode", None)
    bounds = {"sharpness": {"min": float(np.median(sharp))}}
    run(candidates, tmp_path / "out", caption=caption, num_negatives=0,
        thresholds=Thresholds(bounds=bounds))  # fmt: skip
    assert first == GOOD and len(asked.read_text().splitlines()) == GOOD
    left = len(shards(tmp_path / "out", "positive"))
    assert 0 < left < GOOD
    assert left == statistics(tmp_path / "out", "select")["kept"]


def test_a_run_ends_with_what_came_out_and_a_table_of_every_image(
    candidates: Path, tmp_path: Path
) -> None:
    """Of the good ones one has a caption; the flat one is stored, and refused by its contrast."""
    captions = CaptionStep(captioner=None, cache=str(tmp_path))
    made = settings(
        candidates, tmp_path / "my out", negatives=None, num_negatives=0, caption=captions
    )
    lines = Pipeline(made, HERE).run(STEPS).splitlines()
    assert lines[0] == f"kept {GOOD} of {GOOD + len(BAD) + 1} images"
    assert lines[1] == "refused 5: damaged image 3, contrast below 5 1, too small 1"
    assert f"shards: {tmp_path}/my out/shards/positive, {GOOD} samples in 4 tars" in lines
    assert any(line.startswith(f"{GOOD - 1} images have no caption; ") for line in lines)
    own = f"'data.root={tmp_path}/my out'"  # for a shell
    assert lines[-1].endswith(f"src.train experiment=zerosft data=folder {own}")
    assert Pipeline(made, HERE).run(("filter",)) == ""
    with (tmp_path / "my out/report/images.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert {name: rows[name]["reason"] for name in BAD} == BAD
    assert rows["flat.png"]["reason"] == "contrast below 5"
    assert float(rows["flat.png"]["contrast"]) == 0 and rows["small.jpg"]["contrast"] == ""
    assert sum(row["reason"] == "" for row in rows.values()) == GOOD


def test_report_counts_draws_and_shows_both_sides_without_outside_parts(built: Path) -> None:
    page = (built / "report/index.html").read_text()
    assert "contrast min 5: nearest refused (1 in all)" in page
    assert f"contrast min 5: nearest passed ({GOOD} in all)" in page
    assert "<td>contrast below 5</td><td>1</td><td>4.00%</td>" in page
    assert "<td>damaged image</td><td>3</td>" in page
    assert page.count("<svg") == len(MEASURES)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    listed = (built / "report/skipped.csv").read_text()
    assert all(name in listed and reason in listed for name, reason in BAD.items())


def test_card_says_what_is_in_the_shards_and_how_they_came_about(built: Path) -> None:
    card = json.loads((built / "shards/positive/card.json").read_text())
    assert card["candidates"] == GOOD + len(BAD) + 1
    assert card["refused"] == {"damaged image": 3, "too small": 1, "contrast below 5": 1}
    assert card["shards"]["positive"]["samples"] == GOOD
    assert card["shards"]["negative"]["caption_words"] == {"0": 5}
    assert card["licences"] == {"CC0": GOOD} and card["sources"] == {"photos": GOOD}
    assert card["settings"]["thresholds"]["bounds"] == {"contrast": {"min": 5.0}}
    assert card["settings"]["caption"]["captioner"] == {"mean": ""}
    assert card["settings"]["positives"]["seed"] == 0 and "torch" in card["versions"]
    text = (built / "shards/positive/CARD.md").read_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert any(line.startswith(f"| positive | {GOOD} | 4 |") for line in lines)
    assert f"| CC0 | {GOOD} |" in lines and "| 1 to 15 | 5 |" in lines  # words of the negatives


class CountingScorer:
    def __init__(self, log: str) -> None:
        self.log = log

    def __call__(self, image) -> dict[str, float]:
        with open(self.log, "a") as file:
            file.write("x")
        return {"mean": image.mean().item()}


def test_card_counts_the_present_selection_and_input(candidates: Path, tmp_path: Path) -> None:
    shutil.copytree(candidates, tmp_path / "in")
    run(tmp_path / "in", tmp_path)
    units = [read_rows(path) for path in (tmp_path / "work/filter").glob("*/rows.parquet")]
    good = [[row["luma"] for row in rows if row["reason"] is None] for rows in units]
    luma = min(max(values) for values in good if len(values) > 1)
    (tmp_path / "in" / "late.jpg").write_bytes(b"")
    bounds = Thresholds(bounds={"luma": {"min": luma + 1e-3}})  # one unit has none left
    run(tmp_path / "in", tmp_path, thresholds=bounds, rescan=True, num_negatives=0)
    card = json.loads((tmp_path / "shards/positive/card.json").read_text())
    kept = card["shards"]["positive"]["samples"]
    assert 0 < kept < GOOD and card["sources"] == {"photos": kept}
    assert card["candidates"] == GOOD + len(BAD) + 2 == kept + sum(card["refused"].values())
    before = card["candidates"]
    (tmp_path / "in" / "later.jpg").write_bytes(b"")  # changes the counts, not the shards
    run(tmp_path / "in", tmp_path, thresholds=bounds, rescan=True, num_negatives=0)
    card = json.loads((tmp_path / "shards/positive/card.json").read_text())
    assert card["candidates"] == before + 1


def test_scores_become_columns_and_are_not_computed_again(candidates: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    import functools

    blueprint = Blueprint({}, functools.partial(CountingScorer, str(asked)))
    score = ScoreStep(metrics=("mean",), scorer=blueprint)
    output = tmp_path / "out"
    run(candidates, output, score=score, num_negatives=0)
    assert len(asked.read_text()) == GOOD  # not the flat one, which the bounds refuse
    bounds = {"contrast": {"min": 6.0}}
    top = Thresholds(bounds=bounds, top={"mean": 0.25})
    run(candidates, output, score=score, num_negatives=0, thresholds=top)
    assert len(asked.read_text()) == GOOD
    values = sorted(
        (
            r["mean"]
            for p in (output / "work/score").iterdir()
            for r in read_rows(p / "rows.parquet")
        ),
        reverse=True,
    )
    kept = [json.loads(s.meta)["scores"]["mean"] for s in shards(output, "positive")]
    assert sorted(kept, reverse=True) == pytest.approx(values[: GOOD // 4], abs=1e-4)


def test_captions_that_fail_are_recorded_left_out_and_retried_on_demand(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("open_supir.curation.caption.RETRY_SECONDS", 0.0)
    output, asked = tmp_path / "out", tmp_path / "asked"

    def captioner(fails_on: str) -> CaptionStep:
        blueprint = Blueprint({"mean": ""}, mean_captioner(str(asked), fails_on).build)
        return CaptionStep(captioner=blueprint, cache=str(tmp_path / "cache"), attempts=2)

    run(candidates, output, caption=captioner("mean 0.5"), num_negatives=0)
    rows = [r for p in (output / "work/caption").iterdir() for r in read_rows(p / "rows.parquet")]
    failed = [row for row in rows if row["error"]]
    assert 0 < len(failed) < GOOD and "the model choked" in failed[0]["error"]
    assert f"{len(failed)} images are left out" in caplog.text
    assert len(asked.read_text().splitlines()) == GOOD + len(failed)  # each of them twice
    assert len(shards(output, "positive")) == GOOD - len(failed)
    card = json.loads((output / "shards/positive/card.json").read_text())
    assert card["refused"]["caption failed"] == len(failed)
    run(candidates, output, caption=captioner(""), num_negatives=0, retry_failed=True)
    assert len(shards(output, "positive")) == GOOD
    assert len(asked.read_text().splitlines()) == GOOD + 2 * len(failed)


def test_quadrants_existing_captions_and_concurrency(candidates: Path, tmp_path: Path) -> None:
    caption = CaptionStep(captioner=mean_captioner(), cache=str(tmp_path / "cache"),
                          quadrants=True, keep_existing=True, concurrency=4)  # fmt: skip
    run(candidates, tmp_path / "out", caption=caption, num_negatives=0)
    samples = shards(tmp_path / "out", "positive")
    (along,) = [s for s in samples if s.text == b"a caption that came along"]
    assert "captions" not in json.loads(along.meta)
    for sample in samples:
        if sample is not along:
            pixels = decode_training_image(sample.image, LIMITS).astype(np.float32) / 255
            import torch

            parts = quadrants(torch.from_numpy(pixels).permute(2, 0, 1))
            named = json.loads(sample.meta)["captions"]
            assert list(named) == sorted(["top_left", "top_right", "bottom_left", "bottom_right"])
            assert named["top_right"] == f"an image of mean {parts[1].mean():.4f}"


def test_missing_shard_is_written_again(candidates: Path, tmp_path: Path) -> None:
    run(candidates, tmp_path, num_negatives=0)
    before = {p.name: p.read_bytes() for p in (tmp_path / "shards/positive").iterdir()}
    (tmp_path / "shards/positive" / sorted(n for n in before if n.endswith(".tar"))[1]).unlink()
    run(candidates, tmp_path, num_negatives=0)
    assert {p.name: p.read_bytes() for p in (tmp_path / "shards/positive").iterdir()} == before


def test_shards_of_another_output_are_not_replaced(candidates: Path, tmp_path: Path) -> None:
    place = {"shards_dir": str(tmp_path / "shards")}
    shutil.copytree(candidates, tmp_path / "other")
    run(candidates, tmp_path / "one", **place)
    before = sorted((tmp_path / "shards").rglob("*"))
    with pytest.raises(ValueError, match="positive holds shards made from another"):
        run(tmp_path / "other", tmp_path / "two", **place)
    face = ShardLayoutStep(source="face", origin="filter", shard_size=6)
    with pytest.raises(ValueError, match="negative holds shards"):
        run(tmp_path / "other", tmp_path / "two", **place, positives=face)
    assert before == [p for p in sorted((tmp_path / "shards").rglob("*")) if "face" not in str(p)]
    run(tmp_path / "other", tmp_path / "two", **place, positives=face, num_negatives=0)
    assert len(read_manifest(tmp_path / "shards" / "face")) == len(
        read_manifest(tmp_path / "shards" / "positive")
    )


def test_run_killed_before_its_report_or_before_old_shards_go_catches_up(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(candidates, tmp_path)
    bounds = {"thresholds": Thresholds(bounds={"luma": {"min": 126.0}})}
    with monkeypatch.context() as patch:
        patch.setattr("open_supir.curation.filter_report.write_filter_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(candidates, tmp_path, **bounds)
    run(candidates, tmp_path, ("select", "caption", "negatives"), **bounds)
    assert "luma min 126" in (tmp_path / "report/index.html").read_text()
    run(candidates, tmp_path, **bounds)
    (tmp_path / "shards/positive/positive-0ld-000000.tar").write_bytes(b"of an earlier selection")
    run(candidates, tmp_path, **bounds)
    for folder in (tmp_path / "shards").iterdir():
        listed = {entry.name for entry in read_manifest(folder)}
        assert {path.name for path in folder.glob("*.tar")} == listed


def test_second_run_at_once_is_refused(candidates: Path, tmp_path: Path) -> None:
    with alone(tmp_path / "work"), pytest.raises(ValueError, match="another run writes"):
        run(candidates, tmp_path)
    run(candidates, tmp_path, ("filter",))


def test_step_before_its_turn_says_what_to_run(candidates: Path, tmp_path: Path) -> None:
    """Nothing is ever made from the leavings of other settings."""
    order = ["filter", "dedup", "select", "caption", "negatives", "shards"]
    for first, step in pairwise(order):
        with pytest.raises(FileNotFoundError, match=f"step={first} first"):
            run(candidates, tmp_path, [step])
        run(candidates, tmp_path, [first])
    run(candidates, tmp_path, ["shards"])
    other = Thresholds(bounds={"contrast": {"min": 6.0}})
    with pytest.raises(FileNotFoundError, match="other settings: run step=dedup first"):
        run(candidates, tmp_path, ["shards"], thresholds=other)


def test_threshold_on_an_unknown_score_is_refused(candidates: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score 'sharpnes'; known: aspect"):
        run(candidates, tmp_path, thresholds=Thresholds(bounds={"sharpnes": {"min": 1}}))
    with pytest.raises(ValueError, match="takes min and max"):
        Thresholds(bounds={"luma": {"min": 5, "max": 1}})
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Thresholds(top={"luma": 20})


def test_failed_units_are_listed_and_the_others_done(
    candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = filters.write_shard

    def failing(path, samples):
        if path.stem == "000002":
            raise OSError("no space left")
        return write(path, samples)

    monkeypatch.setattr(filters, "write_shard", failing)
    with pytest.raises(UnitsFailed, match=r"1 units failed.*\nfilter/000002: .*no space left"):
        run(candidates, tmp_path, num_negatives=0)
    assert len(shards(tmp_path, "positive")) >= GOOD - 4
    monkeypatch.undo()
    run(candidates, tmp_path, num_negatives=0)
    assert len(shards(tmp_path, "positive")) == GOOD


@pytest.mark.parametrize("make", [
    lambda: NegativeStep(prior=Blueprint({}, dict), words=" "),
    lambda: NegativeStep(prior=Blueprint({}, dict), words="w", strength=0),
    lambda: CaptionStep(captioner=None, cache="x", concurrency=0),
])  # fmt: skip
def test_settings_out_of_range_are_refused(make) -> None:
    with pytest.raises(ValueError, match="needs|at least 1"):
        make()
