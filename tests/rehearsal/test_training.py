"""The rehearsal of training: simulated, and counted on meta.

Simulating registers an accelerator for good, so it runs in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from open_supir.rehearsal.counted import count_training
from open_supir.rehearsal.dry_run import chosen_micro_batch, dry_run_training
from open_supir.rehearsal.training import TrainingPlan
from open_supir.rehearsal.training_report import parameters
from open_supir.training.flops import step_flops
from tests.test_configs import ROOT, composed, plain

GIB = 2**30
PARTS = ("unet", "vae", "control", "connector")


def dry_run(folder: Path, *overrides: str) -> dict[str, Any]:
    """Rehearse by the command line, where there are no GPU, weights or data; return the report."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "src.train", "dry_run=true", f"report={report}"]
    places = [f"runs_dir={folder / 'runs'}", "data.root=nowhere", "weights.sdxl=nowhere"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *places, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> dict[str, Any]:
    return dry_run(tiny_folder, "experiment=zerosft", "optim.kind=adamw")


def counted_flops(batch: int) -> float:
    cfg = composed("train", "experiment=zerosft")
    found = step_flops({part: plain(cfg, part) for part in PARTS}, stage="supir", crop=64)
    assert found is not None
    return batch * sum(found)


def test_memory_between_steps_is_that_of_parameters_and_adam(tiny: dict[str, Any]) -> None:
    """float32 parameters, two float32 averages of the trained ones; allocations round up.

    The degradation's tables stay on the device after the first step: some 5 MB.
    """
    if tiny["how"] != "simulated":
        pytest.skip(tiny["how"])
    every = sum(part["all"] for part in tiny["parameters"].values())
    trained = sum(part["trained"] for part in tiny["parameters"].values())
    assert tiny["static"] == pytest.approx(4 * every, rel=0.02)
    state = tiny["resident"] - tiny["static"]
    assert 8 * trained < state < 8 * trained + 8e6
    peaks = [max(p["peak"] for p in tiny[step].values()) for step in ("first", "later")]
    assert peaks[1] - peaks[0] == pytest.approx(8 * trained, rel=0.03)  # both before the update


def test_simulated_operations_are_those_counted_elsewhere(tiny: dict[str, Any]) -> None:
    """Against Lightning's count for the MFU, which leaves out the backward pass's recomputation
    of fused attention.
    """
    if tiny["how"] != "simulated":
        pytest.skip(tiny["how"])
    phases = tiny["later"]
    assert list(phases) == [
        "copy",
        "degrade",
        "encodes",
        "text",
        "forward",
        "backward",
        "guard",
        "optimiser",
    ]
    flops = sum(phases[name]["flops"] for name in ("encodes", "forward", "backward"))
    assert flops == pytest.approx(counted_flops(8), rel=0.05)
    assert phases["backward"]["launches"] > 300 and phases["text"]["launches"] > 50


def test_a_step_between_two_log_points_waits_for_nothing(tiny: dict[str, Any]) -> None:
    assert {name: p["waits"] for name, p in tiny["later"].items() if p["waits"]} == {}


def test_count_on_meta_agrees_with_the_simulation(tiny: dict[str, Any]) -> None:
    """The sum leaves out what lives for a moment."""
    cfg = composed("train", "experiment=zerosft", "optim.kind=adamw")
    with torch.device("meta"):
        module = instantiate(cfg.module, recipe={}, _convert_="all")
    assert parameters(module) == tiny["parameters"]
    plan = TrainingPlan(crop=64, micro_batch=8, autocast=None, frozen=torch.float32)
    cost = count_training(module, plan)
    assert cost.flops == pytest.approx(counted_flops(8), rel=0.05)
    if tiny["how"] == "simulated":
        peak = max(p["peak"] for p in tiny["later"].values())
        assert 0.75 * peak < cost.peak(cost.later) < 1.1 * peak


def test_no_run_folder_is_left(tiny: dict[str, Any], tiny_folder: Path) -> None:
    assert sorted(path.name for path in tiny_folder.iterdir()) == ["report.json"]


@pytest.mark.parametrize("experiment", ["prior", "one_step"])
def test_other_stages_are_rehearsed_too(tmp_path: Path, experiment: str) -> None:
    """Held: AdamW's averages of what is trained, discriminator included, and gradients, which stay
    between micro-batches.
    """
    words = ("optim.kind=adamw", "data.micro_batch=2")
    report = dry_run(tmp_path, f"experiment={experiment}", *words)
    if report["how"] != "simulated":
        pytest.skip(report["how"])
    parts = report["parameters"]
    trained = sum(part["trained"] for part in parts.values())
    assert (parts.get("discriminator", {}).get("trained", 0) > 0) == (experiment == "one_step")
    state = report["resident"] - report["static"]
    assert 12 * trained < state < 1.02 * 12 * trained + 8e6  # and the degradation's tables
    assert {name: p["waits"] for name, p in report["later"].items() if p["waits"]} == {}


def test_an_autoencoders_training_is_refused() -> None:
    cfg = composed("train", "experiment=vae", "run_dir=x")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    with pytest.raises(ValueError, match="experiment=vae"):
        dry_run_training(config, lambda *_, **__: pytest.fail("built"))


@pytest.mark.slow
def test_full_size_meets_the_recorded_figures(tmp_path: Path) -> None:
    """Figures of an independent prototype, for 16 crops of 512 at half depth: within 5 %."""
    report = dry_run(tmp_path, "experiment=zerosft", "scale=sdxl", "trainer.devices=1",
                     "data.global_batch=16", "device_memory=141")  # fmt: skip
    if report["how"] != "simulated":
        pytest.skip(report["how"])
    peaks = [max(p["peak"] for p in report[step].values()) for step in ("first", "later")]
    found = [report["static"], report["resident"], *peaks]
    assert [value / GIB for value in found] == pytest.approx([9.3, 14.9, 30.2, 35.8], rel=0.05)
    assert report["flops"] / 1e12 == pytest.approx(101.6, rel=0.05)
    launches = {name: phase["launches"] for name, phase in report["first"].items()}
    expected = {"degrade": 319, "encodes": 194, "text": 1030, "forward": 2967, "backward": 2364}
    assert {name: launches[name] for name in expected} == pytest.approx(expected, rel=0.05)
    assert report["later"]["optimiser"]["launches"] == pytest.approx(1150, rel=0.05)


@pytest.mark.parametrize(
    ("experiment", "more", "memory", "crops"),
    [
        ("robust_encoder", [], 85.0e9, 16),  # 4.33 GiB a crop
        ("robust_encoder", ["checkpointing=full"], 25.4e9, 8),  # 1.59 GiB a crop
        ("robust_encoder", ["checkpointing=full"], 150.0e9, 16),  # 32: tensors of 2 ** 31 values
        # 14.9 + 2.8 GiB static, 1.4 of copies, 1.22 a crop
        pytest.param("zerosft", [], 85.0e9, 32, marks=pytest.mark.slow),
        pytest.param("zerosft", [], 150.0e9, 64, marks=pytest.mark.slow),
        pytest.param("zerosft", [], 50.9e9, 16, marks=pytest.mark.slow),
        pytest.param("zerosft", [], 25.4e9, 1, marks=pytest.mark.slow),
        pytest.param("zerosft", ["trainer=auto"], 25.4e9, 1, marks=pytest.mark.slow),
    ],
)
def test_micro_batch_left_open_is_what_fits(
    experiment: str, more: list[str], memory: float, crops: int
) -> None:
    """By the simulated peaks of docs and benchmarks/results/rehearsal.md, a power of two."""
    places = [
        "data.root=x",
        "data.heldout=x",
        "weights.sdxl=x",
        "weights.robust_encoder=x",
        "run_dir=x",
    ]
    cfg = composed("train", f"experiment={experiment}", "scale=sdxl", *places, *more)
    with torch.device("meta"):
        module = instantiate(cfg.module, recipe={}, _convert_="all")
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    assert chosen_micro_batch(module, config, ranks=1, memory=int(memory)) == crops
