"""The rehearsal of restoring, and the memory ladder's estimate held against it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from open_supir.base.places import SHIPPED_MODEL
from open_supir.commands.evaluate import evaluate
from open_supir.commands.restore import restore
from open_supir.inference.checkpoint import build_networks
from open_supir.inference.memory import UNET_VALUES, VAE_VALUES
from open_supir.inference.model import Model
from open_supir.rehearsal.cards import Card, cards
from open_supir.rehearsal.restoring import rehearse_restoring
from open_supir.rehearsal.restoring_report import read_sizes, spread
from tests.test_configs import composed

GIB = 2**30


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the rows of a dry run of two sizes with the shipped model."""
    report = tmp_path_factory.mktemp("dry") / "report.json"
    settings = ["sizes=[64, [128, 96]]", f"report={report}", "device_memory=24"]
    places = ["runs_dir=nowhere", "dtype=float32"]
    assert restore(composed("restore", "dry_run=true", *settings, *places)) == []
    return json.loads(report.read_text())["rows"]


def test_weights_are_those_of_the_networks(rows: list[dict[str, Any]]) -> None:
    networks = build_networks(
        Model.find(SHIPPED_MODEL, runs_dir="", weights={}).recipe["architecture"]
    )
    parts = [part for part in networks if isinstance(part, torch.nn.Module)]
    size = sum(p.numel() * 4 for part in parts for p in part.parameters())
    assert rows[0]["weights"] == pytest.approx(size, rel=0.02)  # allocations round up


def test_work_grows_with_the_image(rows: list[dict[str, Any]]) -> None:
    """Convolutions cost the same for each pixel; 128 x 96 are three times 64 x 64."""
    small, large = (row["stages"]["encode"]["flops"] for row in rows)
    assert 3 <= large / small < 3.5
    assert rows[0]["peak"] < rows[1]["peak"] and rows[1]["mode"] == []
    assert rows[1]["seconds"]["24"] == pytest.approx(rows[1]["flops"] / (165e12 * 0.4))


def test_tiles_asked_for_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["options.vae_tile=64", "sampler.tile=16", "sizes=[64]", "runs_dir=nowhere"]
    restore(composed("restore", "dry_run=true", "dtype=float32", *asked))
    assert "| vae_tile=64, tile=16 |" in capsys.readouterr().out


def test_offload_is_rehearsed(rows: list[dict[str, Any]]) -> None:
    """The peak is that of the largest part, no longer of all; the weights are on the host."""
    model = Model.find(SHIPPED_MODEL, runs_dir="", weights={})
    networks = build_networks(model.recipe["architecture"])
    options = model.options({}, {"offload": True})
    (cost,) = rehearse_restoring(networks, options, [(64, 64)], dtype=torch.float32)
    sizes = [sum(p.numel() * 4 for p in part.parameters()) for part in networks
             if isinstance(part, torch.nn.Module)]  # fmt: skip
    assert cost.weights == pytest.approx(sum(sizes), rel=0.02) and cost.mode == ("offload",)
    saved = rows[0]["peak"] - cost.peak
    assert saved == pytest.approx(sum(sizes) - max(sizes), rel=0.1)
    tensors = len(list(networks.network.parameters()))
    assert cost.stages["sample"].copies["pinned"] >= tensors


def test_waits_are_told_with_their_line(rows: list[dict[str, Any]]) -> None:
    """The result is read from the device once, where it is finished."""
    waits = rows[0]["stages"]["finish"]["waits"]
    read = {place: n for place, n in waits.items() if place.startswith("copy to the host")}
    assert list(read.values()) == [1] and "inference/pixels.py:" in next(iter(read))


def test_ladder_decides_by_the_memory_given(rows: list[dict[str, Any]]) -> None:
    """64 x 64 with less memory than the weights take: everything is tiled."""
    model = Model.find(SHIPPED_MODEL, runs_dir="", weights={})
    networks = build_networks(model.recipe["architecture"])
    options = model.options({}, {})
    sizes, memory = [(64, 64)], 1_000_000
    (cost,) = rehearse_restoring(
        networks, options, sizes, dtype=torch.float32, device_memory=memory
    )
    assert cost.mode[0] == "vae_tile=1024" and rows[0]["mode"] == []


def test_evaluating_tells_the_same(tmp_path: Path) -> None:
    settings = ["dry_run=true", "sizes=[64]", "runs_dir=nowhere", f"report={tmp_path / 'r.json'}"]
    assert "64 x 64" in evaluate(composed("evaluate", *settings))
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["images"] == 1


def test_sizes_are_those_of_the_files_and_few(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert read_sizes(None, [tmp_path / "a.png", tmp_path / "b.png"]) == {(20, 30): 1}
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "c.jpg", exif=turned.getexif())
    assert read_sizes(None, [tmp_path / "c.jpg"]) == {(30, 20): 1}  # as it is restored
    with pytest.raises(ValueError, match="sizes="):
        read_sizes(None, [])
    many = Counter({(side, side): 1 for side in range(1, 101)})
    chosen = spread(many)
    assert len(chosen) == 6 and (100, 100) in chosen and chosen.total() == 100


def test_cards_fit_what_is_below_their_share() -> None:
    card = Card(24)  # 22.8e9 bytes usable
    assert card.fits(8, 22e9, 1e9) == "yes"
    assert card.fits(16, 30e9, 1e9) == "micro_batch=8"
    assert card.fits(2, 30e9, 1e9) == "no"
    assert [card.memory for card in cards(None, 0.4)] == [24, 48, 80, 141]
    (small,) = cards(8, 0.4)
    assert small.seconds(30.2e12) == pytest.approx(2.5)
    with pytest.raises(ValueError, match="8, 12, 16, 24, 48, 80, 141"):
        Card(32)
    with pytest.raises(ValueError, match="mfu=0"):
        Card(24, 0)


@pytest.mark.slow
def test_full_size_meets_the_recorded_figures_and_the_ladders_estimate() -> None:
    """Figures of an independent prototype, GiB: within 5 %. The estimate is that of `fit`."""
    model = Model.released(dtype="bfloat16")
    networks = build_networks(model.recipe["architecture"])
    options, sides = model.options({"cfg_scale": 4.0}, {}), (1024, 2048)
    costs = list(
        rehearse_restoring(networks, options, [(s, s) for s in sides], dtype=torch.bfloat16)
    )
    weights, found = costs[0].weights / GIB, [cost.peak / GIB for cost in costs]
    assert [weights, *found] == pytest.approx([8.94, 10.5, 15.1], rel=0.05)
    for side, cost in zip(sides, costs, strict=True):
        vae = side**2 * VAE_VALUES * 128 * 2 / GIB
        network = 2 * (side // 8) ** 2 * UNET_VALUES * 320 * 2 / GIB
        assert weights + max(vae, network) == pytest.approx(cost.peak / GIB, rel=0.05)
        sampled = cost.stages["sample"].peak / GIB
        assert weights + network == pytest.approx(sampled, rel=0.05)
