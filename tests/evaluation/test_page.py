"""The page of an evaluation: self-contained, within its size, with what a reviewer asks for."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.images.write import write_image
from open_supir.evaluation import read_records, run_benchmark, write_report
from open_supir.evaluation.provenance import (
    describe_environment,
    read_inputs,
    write_environment,
)
from open_supir.evaluation.records import Record
from open_supir.evaluation.samples import Sample

TABLES = ("table.md", "table.csv", "table.tex", "paired.csv", "per_image.csv", "report.html")


def _noise(seed: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, size, size, generator=generator)


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """An evaluation of six images by two methods, with all that lies beside the records."""
    source = tmp_path / "in.png"
    write_image(source, _noise(9)[0])
    samples = [
        Sample(f"img{i}", _noise(i), _noise(50 + i), source, {"noise": 0.25, "seed": i})
        for i in range(6)
    ]
    methods = {"lq": lambda s: s.lq, "mean": lambda s: (s.lq + s.hq) / 2}
    folder = tmp_path / "eval"
    run_benchmark(
        samples, methods, ["psnr", "ssim"], out_dir=folder, run="runs/mine", save_images=True,
        settings={"protocol": "demo"}, method_settings={"mean": {"checkpoint": "abc123"}},
    )  # fmt: skip
    write_environment(describe_environment(torch.device("cpu"), degradation="x4"), folder)
    write_report(read_records(folder / "records.jsonl"), folder, title="mine")
    return folder


def test_page_holds_parameters_settings_versions_and_hashes(evaluated: Path) -> None:
    page = html.unescape((evaluated / "report.html").read_text())
    digest = read_inputs(evaluated)["img0"]["sha256"]
    assert digest == sha256_of(evaluated.parent / "in.png") and digest in page
    assert "noise: 0.25" in page and "abc123" in page
    assert f'"torch": "{torch.__version__.split("+")[0]}"' in page
    assert len(re.findall(r"<use [^>]*><title>img\d, mean: ", page)) == 2 * 6  # two metrics
    assert page.count('type="range"') == 6 and page.count("data:image/png;base64,") == 6 * 3
    assert not re.search(r'(src|href)="(?!data:|https://|#)', page) and "<link" not in page


def test_tables_from_records_alone_are_identical(evaluated: Path, tmp_path: Path) -> None:
    before = {name: (evaluated / name).read_bytes() for name in TABLES}
    records = read_records(evaluated / "records.jsonl")
    write_report(records, tmp_path / "again", title="mine", source=evaluated)
    for name in TABLES:
        assert (tmp_path / "again" / name).read_bytes() == before[name], name


def test_latex_marks_best_and_escapes(evaluated: Path) -> None:
    text = (evaluated / "table.tex").read_text()
    assert r"method & PSNR $\uparrow$ & SSIM $\uparrow$ \\" in text
    assert text.count(r"\textbf{") == 2 and text.count(r"\begin{tabular}{lrr}") == 1


def test_changed_inputs_are_measured_anew(tmp_path: Path) -> None:
    """A resumed evaluation trusts neither values nor pictures of an input that has changed."""
    calls: list[str] = []

    def restore(sample: Sample) -> Tensor:
        calls.append(sample.name)
        return sample.lq

    def evaluate(shift: float) -> list:
        samples = [
            Sample(n, _noise(i), _noise(9), None, {"s": shift * i}) for i, n in enumerate("ab")
        ]
        return run_benchmark(
            samples,
            {"m": restore},
            ["psnr"],
            out_dir=tmp_path,
            run="r",
            save_images=True,
            resume=True,
        )

    evaluate(0.0)
    evaluate(0.0)
    assert calls == ["a", "b"]
    evaluate(1.0)  # changes what is known of b alone
    assert calls == ["a", "b", "b"]


def test_new_settings_of_one_method_leave_the_others_alone(tmp_path: Path) -> None:
    calls: list[str] = []

    def method(name: str):
        def restore(sample: Sample) -> Tensor:
            calls.append(name)
            return sample.lq

        return restore

    def evaluate(checkpoint: str) -> None:
        run_benchmark(
            [Sample("a", _noise(0), _noise(1))], {"lq": method("lq"), "ours": method("ours")},
            ["psnr"], out_dir=tmp_path, run="r", save_images=True, resume=True,
            method_settings={"ours": {"checkpoint": checkpoint}},
        )  # fmt: skip

    evaluate("x")
    evaluate("y")
    assert calls == ["lq", "ours", "ours"]


def test_repeated_evaluation_writes_the_same_records(tmp_path: Path) -> None:
    samples = [Sample(n, _noise(i), _noise(9)) for i, n in enumerate("abc")]
    for folder, order in (("one", samples), ("two", samples[::-1])):
        run_benchmark(
            order, {"m": lambda s: s.lq}, ["psnr", "ssim"], out_dir=tmp_path / folder, run="r"
        )
    lines = [
        sorted((tmp_path / folder / "records.jsonl").read_text().splitlines())
        for folder in ("one", "two")
    ]
    assert lines[0] == lines[1] and json.loads(lines[0][0])["status"] == "ok"


@pytest.mark.slow
def test_whole_page_of_a_hundred_large_images_stays_below_20_mb(tmp_path: Path) -> None:
    """Two methods, HQ, and noise as pictures: 300 of 768 pixels, which no codec makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (768, 768, 3), dtype=np.uint8)
    records = []
    for method in ("lq", "restored", "hq"):
        folder = tmp_path / "images" / method
        folder.mkdir(parents=True)
        for index in range(100):
            Image.fromarray(noise).save(folder / f"{index}.png", compress_level=1)
            if method != "hq":
                records.append(
                    Record(
                        image=str(index),
                        method=method,
                        metric="psnr",
                        value=20.0 + index / 10,
                        run="r",
                        settings={"protocol": "demo"},
                        status="ok",
                        reason="",
                    )  # fmt: skip
                )
    write_report(records, tmp_path)
    page = tmp_path / "report.html"
    assert 10_000_000 < page.stat().st_size <= 20_000_000
    assert page.read_text().count("data:image/") == 300
