"""Running methods over images: what is measured, and what happens when something fails."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_supir.base.images import read_image, to_uint8
from open_supir.evaluation import metrics as registry
from open_supir.evaluation.benchmark import picture_path, run_benchmark
from open_supir.evaluation.records import Record, read_records
from open_supir.evaluation.samples import BrokenSample, Output, Sample

DO_NOTHING = {"lq": lambda s: s.lq}


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights count as absent, whatever this machine has."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def _image(seed: int, size: int = 16) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _samples(count: int = 2) -> list[tuple[str, Tensor, Tensor | None]]:
    return [(f"img{i}", _image(i), _image(i + 100)) for i in range(count)]


def _by_key(records: list[Record]) -> dict[tuple[str, str, str], Record]:
    return {(r["image"], r["method"], r["metric"]): r for r in records}


def test_benchmark_writes_one_record_an_image_method_and_metric(tmp_path: Path) -> None:
    methods = {**DO_NOTHING, "flip": lambda s: s.lq.flip(-1)}
    settings = {"protocol": "demo", "seed": 0}
    records = run_benchmark(
        _samples(), methods, ["psnr", "ssim"], out_dir=tmp_path, run="a", settings=settings
    )
    assert len(_by_key(records)) == len(records) == 2 * 2 * 2
    assert all(r["status"] == "ok" and r["settings"] == settings for r in records)
    assert read_records(tmp_path / "records.jsonl") == records


def test_benchmark_measures_the_eight_bit_image(tmp_path: Path) -> None:
    """An error below half a grey level disappears when the image is saved."""
    hq = to_uint8(_image(0)).float() / 255
    records = run_benchmark(
        [("a", hq, hq)], {"m": lambda s: s.lq + 0.4 / 255}, ["psnr"], out_dir=tmp_path, run="a"
    )
    assert records[0]["value"] == pytest.approx(80.0, abs=1e-6)


def test_benchmark_gives_na_rows_when_weights_are_missing(tmp_path: Path) -> None:
    records = run_benchmark(
        _samples(), DO_NOTHING, ["psnr", "lpips", "musiq"], out_dir=tmp_path, run="a"
    )
    rows = {r["metric"]: r for r in records if r["status"] == "missing_weights"}
    assert set(rows) == {"lpips", "musiq"}
    assert all(r["value"] is None and r["image"] == "*" for r in rows.values())
    assert "alexnet-owt-7be5be79.pth" in rows["lpips"]["reason"]


def test_benchmark_refuses_an_unknown_metric_before_any_work(tmp_path: Path) -> None:
    def images():
        raise AssertionError("images were read")
        yield

    with pytest.raises(ValueError, match="unknown metric"):
        run_benchmark(images(), DO_NOTHING, ["psnr", "typo"], out_dir=tmp_path, run="a")


def test_benchmark_records_a_failing_method_and_goes_on(tmp_path: Path) -> None:
    def restore(sample: Sample) -> Tensor:
        if sample.name == "img0":
            raise RuntimeError("out of luck")
        return sample.lq

    records = run_benchmark(_samples(), {"m": restore}, ["psnr"], out_dir=tmp_path, run="a")
    rows = _by_key(records)
    failed = rows["img0", "m", "psnr"]
    assert (failed["value"], failed["status"]) == (None, "restore_failed")
    assert failed["reason"] == "RuntimeError: out of luck"
    assert rows["img1", "m", "psnr"]["status"] == "ok"


def test_benchmark_records_nan_pixels_and_wrong_sizes(tmp_path: Path) -> None:
    methods = {"nan": lambda s: s.lq * math.nan, "small": lambda s: s.lq[..., :8]}
    records = run_benchmark(_samples(1), methods, ["psnr"], out_dir=tmp_path, run="a")
    reasons = {r["method"]: r["reason"] for r in records}
    assert reasons["nan"] == "restored image has NaN or infinite values"
    assert reasons["small"] == "restored image is 1x3x16x8, expected 1x3x16x16"


def test_benchmark_records_a_metric_that_is_not_finite_or_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(device: torch.device):
        def score(restored: Tensor, reference: Tensor | None) -> float:
            if restored.mean() > 0.5:
                raise ArithmeticError("too bright")
            return math.nan

        return score

    odd = replace(registry.METRICS["psnr"], build=build)
    monkeypatch.setitem(registry.METRICS, "psnr", odd)
    dark, bright = torch.full((1, 3, 16, 16), 0.1), torch.full((1, 3, 16, 16), 0.9)
    images = [("dark", dark, dark), ("bright", bright, bright)]
    rows = _by_key(run_benchmark(images, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a"))
    assert rows["dark", "lq", "psnr"]["status"] == "not_finite"
    assert rows["dark", "lq", "psnr"]["reason"] == "psnr returned nan"
    assert rows["bright", "lq", "psnr"]["status"] == "metric_failed"
    assert rows["bright", "lq", "psnr"]["reason"] == "ArithmeticError: too bright"


def test_benchmark_builds_each_metric_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    psnr = registry.METRICS["psnr"]

    def build(device: torch.device):
        built.append(device)
        return psnr.build(device)

    monkeypatch.setitem(registry.METRICS, "psnr", replace(psnr, build=build))
    run_benchmark(_samples(3), DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a")
    assert len(built) == 1


def test_benchmark_without_reference_measures_what_needs_none(tmp_path: Path) -> None:
    records = run_benchmark(
        [("a", _image(0), None)], DO_NOTHING, ["psnr", "sharpness"], out_dir=tmp_path, run="a"
    )
    assert {r["metric"]: r["status"] for r in records} == {
        "psnr": "no_reference",
        "sharpness": "ok",
    }


def test_benchmark_records_images_below_the_metric_size(tmp_path: Path) -> None:
    image = _image(0, size=8)
    records = run_benchmark(
        [("a", image, image)], DO_NOTHING, ["psnr", "ssim"], out_dir=tmp_path, run="a"
    )
    assert {r["metric"]: r["status"] for r in records} == {"psnr": "ok", "ssim": "too_small"}


def test_benchmark_cuts_the_border_before_measuring(tmp_path: Path) -> None:
    hq = torch.full((1, 3, 16, 16), 0.5)
    lq = hq.clone()
    lq[..., :2, :] = 0
    records = run_benchmark(
        [("a", lq, hq)], DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a", border=2
    )
    assert records[0]["value"] == pytest.approx(80.0, abs=1e-6)


def test_benchmark_records_a_broken_sample(tmp_path: Path) -> None:
    images = [BrokenSample(name="bad", reason="bad.png: truncated"), *_samples(1)]
    records = run_benchmark(images, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a")
    assert records[0]["status"] == "load_failed" and records[0]["reason"] == "bad.png: truncated"
    assert records[1]["status"] == "ok"


def test_benchmark_refuses_two_images_of_one_name(tmp_path: Path) -> None:
    images = [*_samples(1), *_samples(1)]
    with pytest.raises(ValueError, match="two images are named 'img0'"):
        run_benchmark(images, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a")


def test_benchmark_gives_the_same_values_in_another_order(tmp_path: Path) -> None:
    images = _samples(3)
    first = run_benchmark(images, DO_NOTHING, ["psnr", "ssim"], out_dir=tmp_path / "a", run="a")
    second = run_benchmark(
        images[::-1], DO_NOTHING, ["psnr", "ssim"], out_dir=tmp_path / "b", run="a"
    )
    assert _by_key(first) == _by_key(second)


def test_benchmark_saves_the_pictures_it_measured(tmp_path: Path) -> None:
    samples = _samples(1)
    run_benchmark(samples, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a", save_images=True)
    saved = read_image(picture_path(tmp_path / "images", "lq", "img0"))
    assert torch.equal(saved, to_uint8(samples[0][1])[0])
    assert (tmp_path / "images" / "hq" / "img0.png").is_file()


def test_resumed_benchmark_restores_only_what_is_new(tmp_path: Path) -> None:
    calls = []

    def restore(sample: Sample) -> Tensor:
        calls.append(1)
        return sample.lq

    fixed = {"out_dir": tmp_path, "run": "a", "settings": {"checkpoint": "x"}, "resume": True}
    first = run_benchmark(_samples(2), {"m": restore}, ["psnr"], save_images=True, **fixed)
    more = run_benchmark(_samples(3), {"m": restore}, ["psnr", "ssim"], save_images=True, **fixed)
    assert len(calls) == 2 + 1  # the kept pictures serve the new metric
    fresh = run_benchmark(
        _samples(3), DO_NOTHING, ["psnr", "ssim"], out_dir=tmp_path / "b", run="a"
    )
    assert [r["value"] for r in more] == [r["value"] for r in fresh]
    assert _by_key(more)["img0", "m", "psnr"] == first[0]


def test_resumed_benchmark_reuses_nothing_of_other_settings(tmp_path: Path) -> None:
    methods = {"m": lambda s: s.lq}
    run_benchmark(
        _samples(1), methods, ["psnr"], out_dir=tmp_path, run="a", settings={"checkpoint": "x"}
    )
    again = run_benchmark(
        _samples(1), {"m": lambda s: s.lq * 0}, ["psnr"], out_dir=tmp_path, run="a",
        settings={"checkpoint": "y"}, resume=True,
    )  # fmt: skip
    fresh = run_benchmark(
        _samples(1), {"m": lambda s: s.lq * 0}, ["psnr"], out_dir=tmp_path / "b", run="a"
    )
    assert again[0]["value"] == fresh[0]["value"]


def test_set_metric_on_few_images_is_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fid = replace(registry.METRICS["fid"], weights=())
    monkeypatch.setitem(registry.METRICS, "fid", fid)
    records = run_benchmark(_samples(2), DO_NOTHING, ["psnr", "fid"], out_dir=tmp_path, run="a")
    row = records[-1]
    assert (row["metric"], row["image"], row["status"]) == ("fid", "*", "too_small")
    assert not (tmp_path / "images").exists()


def test_a_changed_reference_is_measured_again(tmp_path: Path) -> None:
    (name, lq, hq), *_ = _samples(1)
    fixed = {"out_dir": tmp_path, "run": "a", "resume": True}
    run_benchmark([(name, lq, hq)], DO_NOTHING, ["psnr"], **fixed)
    (again,) = run_benchmark([(name, lq, lq)], DO_NOTHING, ["psnr"], **fixed)
    assert again["value"] == pytest.approx(80.0, abs=1e-6)


def test_interrupted_resume_loses_no_value_and_keeps_none_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_supir.evaluation.journal.SAVE_SECONDS", -1.0)
    methods = {"lq": lambda s: s.lq, "m": lambda s: s.lq}
    fixed = {"out_dir": tmp_path, "run": "a", "resume": True}
    first = run_benchmark(
        _samples(3), methods, ["psnr"], method_settings={"m": {"tau": 1}}, **fixed
    )

    def stopped():
        yield _samples(3)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(
            stopped(), methods, ["psnr", "ssim"], method_settings={"m": {"tau": 2}}, **fixed
        )
    rows = _by_key(read_records(tmp_path / "records.jsonl"))
    assert len(rows) == 4 + 2  # img0 anew by both metrics; img1 and img2 of the unchanged method
    assert all(r in rows.values() for r in first if r["method"] == "lq")
    assert {r["settings"].get("tau") for r in rows.values()} == {None, 2}


def test_pictures_of_names_that_look_alike_stand_apart(tmp_path: Path) -> None:
    images = [("a/b", _image(0), None), ("a__b", _image(1), None)]
    run_benchmark(images, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a", save_images=True)
    for name, lq, _ in images:
        saved = read_image(picture_path(tmp_path / "images", "lq", name))
        assert torch.equal(saved, to_uint8(lq)[0])
    with pytest.raises(ValueError, match="outside the output folder"):
        outside = [("../x", _image(0), None)]
        run_benchmark(outside, DO_NOTHING, ["psnr"], out_dir=tmp_path, run="a")


def test_damaged_kept_picture_is_made_again(tmp_path: Path) -> None:
    fixed = {"out_dir": tmp_path, "run": "a", "resume": True, "save_images": True}
    run_benchmark(_samples(1), DO_NOTHING, ["psnr"], **fixed)
    kept = picture_path(tmp_path / "images", "lq", "img0")
    kept.write_bytes(kept.read_bytes()[:99])
    rows = run_benchmark(_samples(1), DO_NOTHING, ["psnr", "ssim"], **fixed)
    assert [r["status"] for r in rows] == ["ok", "ok"]


def test_set_metric_sees_the_pairs_of_this_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither pictures of an earlier run nor references whose partner failed take part."""

    def build(device: torch.device):
        def score(restored: Path, reference: Path) -> float:
            pairs = [(p, reference / p.name) for p in restored.iterdir()]
            assert len(pairs) == len(list(reference.iterdir()))
            return sum(torch.equal(*map(read_image, pair)) for pair in pairs) + len(pairs) / 100

        return score

    fid = replace(registry.METRICS["fid"], weights=(), build=build)
    monkeypatch.setitem(registry.METRICS, "fid", fid)
    monkeypatch.setattr("open_supir.evaluation.benchmark.MIN_SET_SIZE", 2)
    fixed = {"out_dir": tmp_path, "run": "a", "save_images": True}
    run_benchmark(_samples(5), DO_NOTHING, ["fid"], settings={"tau": 1}, **fixed)

    def restore(sample: Sample) -> Tensor:
        if sample.name == "img0":
            raise RuntimeError("out of luck")
        assert sample.hq is not None
        return sample.hq

    methods = {"lq": restore}
    rows = run_benchmark(_samples(3), methods, ["fid"], settings={"tau": 2}, resume=True, **fixed)
    assert [(r["value"], r["reason"]) for r in rows] == [(2.02, "2 of 3 images")]


def test_what_a_method_knows_of_its_picture_is_a_column_and_is_reused(tmp_path: Path) -> None:
    """Values beside the metrics come with the picture, and from the records when it is kept."""
    calls: list[str] = []

    def restore(sample: Sample) -> Output:
        calls.append(sample.name)
        return Output(sample.lq, {"disagreement": 1.5 + len(calls)})

    given = {"out_dir": tmp_path, "run": "a", "resume": True, "save_images": True}
    first = run_benchmark(_samples(), {"m": restore}, ["psnr"], **given)
    assert _by_key(first)["img1", "m", "disagreement"]["value"] == 3.5
    assert len(first) == 4
    again = run_benchmark(_samples(), {"m": restore}, ["psnr", "ssim"], **given)  # from pictures
    third = run_benchmark(_samples(), {"m": restore}, ["psnr", "ssim"], **given)  # from records
    for records in (again, third):
        assert _by_key(records)["img1", "m", "disagreement"]["value"] == 3.5 and len(records) == 6
    assert calls == ["img0", "img1"]
