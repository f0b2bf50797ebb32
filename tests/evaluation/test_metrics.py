"""The registry and the search for weight files."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from open_supir.evaluation.metrics import METRICS, check_weights, select_metrics
from open_supir.evaluation.weights import (
    Missing,
    WeightFile,
    fetch,
    fetch_if_reachable,
    find_missing,
    offline,
)


def test_select_metrics_lists_the_known_ones_when_a_name_is_unknown() -> None:
    with pytest.raises(ValueError, match="unknown metric 'pnsr'; known: clipiqa.*psnr, psnr_y"):
        select_metrics(["psnr", "pnsr"])


def test_select_metrics_keeps_the_order_and_drops_repeats() -> None:
    assert [m.name for m in select_metrics(["ssim", "psnr", "ssim"])] == ["ssim", "psnr"]


def test_weightless_metrics_are_never_missing(tmp_path: Path) -> None:
    names = ["psnr", "psnr_y", "ssim", "ssim_y", "ms_ssim", "fsim", "gmsd", "vif", "sharpness"]
    assert check_weights(names, hub_dir=tmp_path) == {}


def test_check_weights_names_file_place_and_address(tmp_path: Path) -> None:
    (missing,) = check_weights(["lpips", "psnr"], hub_dir=tmp_path)["lpips"]
    assert missing.file.path == "checkpoints/alexnet-owt-7be5be79.pth"
    assert missing.looked_in == tmp_path
    assert missing.file.url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    assert str(tmp_path / missing.file.path) in str(missing) and missing.file.url in str(missing)


def test_check_weights_finds_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"
    path.parent.mkdir()
    path.touch()
    assert "musiq" not in check_weights(["musiq"], hub_dir=tmp_path)


def test_find_missing_reports_a_file_that_its_loader_would_fetch_again(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"truncated")
    url = "https://example.org/model.pt"
    file = WeightFile(path="model.pt", url=url, licence="MIT", sha256="0" * 64)
    (missing,) = find_missing((file,), tmp_path)
    assert "SHA-256 differs" in missing.problem


def test_required_metric_without_weights_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lack weights: musiq: .*musiq_koniq"):
        check_weights(["psnr"], require=["musiq"], hub_dir=tmp_path)


def test_fetch_puts_a_file_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_bytes(b"weights")
    url = (tmp_path / "there.pt").as_uri()
    hub = tmp_path / "hub"
    there = WeightFile(path="pyiqa/here.pt", url=url, licence="MIT")
    fetch([Missing(file=there, looked_in=hub)])
    assert (hub / "pyiqa" / "here.pt").read_bytes() == b"weights"
    with pytest.raises(OSError, match="cannot download file:.*gone.pt"):
        gone = WeightFile(path="pyiqa/gone.pt", url=url.replace("there", "gone"), licence="MIT")
        fetch([Missing(file=gone, looked_in=hub)])
    assert [p.name for p in (hub / "pyiqa").iterdir()] == ["here.pt"]


def test_fetching_goes_on_without_what_cannot_be_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked, ask = [], urllib.request.urlopen

    def counted(request: urllib.request.Request, **options: float) -> object:
        asked.append(urllib.request.Request.get_full_url(request))
        return ask(request, **options)

    monkeypatch.setattr("open_supir.evaluation.weights.urllib.request.urlopen", counted)
    (tmp_path / "there.pt").write_bytes(b"weights")
    near, hub = (tmp_path / "there.pt").as_uri(), tmp_path / "hub"
    far = "http://127.0.0.1:9/far.pt"  # the discard port, where nothing listens
    files = [
        WeightFile(path="far.pt", url=far, licence="MIT"),
        WeightFile(path="farther.pt", url=far.replace("far.pt", "farther.pt"), licence="MIT"),
        WeightFile(path="near.pt", url=near, licence="MIT"),
        WeightFile(path="gone.pt", url=near.replace("there", "gone"), licence="MIT"),
        WeightFile(path="whole", url=near, licence="MIT", is_repository=True),
    ]
    fetch_if_reachable([Missing(file=file, looked_in=hub) for file in files])
    assert [p.name for p in hub.iterdir()] == ["near.pt"]
    probes = [url for url in asked if url.startswith("http:")]
    assert probes == [far]  # each host once: without a network, a question takes seconds
    assert "cannot reach 127.0.0.1:9" in caplog.text and "gone.pt" in caplog.text


def test_offline_restores_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_luma_metrics_differ_from_rgb_metrics() -> None:
    """A pure hue error costs more in RGB than in Y."""
    reference = torch.full((1, 3, 16, 16), 0.5)
    restored = reference.clone()
    restored[:, 2] += 0.1
    scores = {name: METRICS[name].build(torch.device("cpu")) for name in ("psnr", "psnr_y")}
    values = {name: score(restored, reference) for name, score in scores.items()}
    # MSE 0.1**2 / 3 in RGB; (0.1 * 24.966 / 255)**2 in Y
    assert values["psnr"] == pytest.approx(24.771, abs=1e-3)
    assert values["psnr_y"] == pytest.approx(40.184, abs=2e-3)


def test_pyiqa_leaves_transformers_llama_to_captioners() -> None:
    """In a process of its own: what is replaced stays so. MS-SSIM is found by importing all."""
    code = """
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from open_supir.evaluation.metrics import METRICS
METRICS["ms_ssim"].build(torch.device("cpu"))
import pyiqa.archs
from transformers.models.llama import modeling_llama
assert pyiqa.archs._ALL_ARCH_IMPORTED, "found otherwise: this test tests nothing"
assert modeling_llama.LlamaDecoderLayer is LlamaDecoderLayer
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ms_ssim", "fsim", "gmsd", "vif"])
def test_metrics_by_pyiqa_without_weights_work_down_to_their_smallest_side(name: str) -> None:
    metric = METRICS[name]
    score = metric.build(torch.device("cpu"))
    reference = torch.rand(1, 3, metric.min_side, metric.min_side)
    worse = [reference + strength * torch.randn_like(reference) for strength in (0.0, 0.1, 0.3)]
    values = [score(image.clamp(0, 1), reference) for image in worse]
    perfect = 0.0 if metric.direction == "lower" else 1.0
    assert values[0] == pytest.approx(perfect, abs=1e-5)
    assert sorted(values, reverse=metric.direction == "higher") == values
