"""Figures of a running experiment, against sums by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_supir.data.counters import LoaderCounters
from open_supir.data.samples import SampleError
from open_supir.networks.sdxl import sdxl_architecture
from open_supir.training.flops import step_flops
from open_supir.training.monitoring import DataCounters, LossBreakdown, Throughput


class Logger:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics |= metrics


def trainer_with(**attributes: Any) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_should_accumulate=lambda: False))
    defaults: dict[str, Any] = dict(
        global_step=1, global_rank=0, world_size=1, loggers=[Logger()], fit_loop=loop,
        datamodule=SimpleNamespace(all_sources=lambda: {"photos": 0, "face": 0}),
        checkpoint_callbacks=[],
    )  # fmt: skip
    return SimpleNamespace(**{**defaults, **attributes})


MODULE: Any = SimpleNamespace(device=torch.device("cpu"))


def test_losses_are_told_apart_by_noise_and_source() -> None:
    breakdown, trainer = LossBreakdown(every=1, edges=(1.0,)), trainer_with()
    breakdown.on_train_start(trainer, MODULE)
    batch = {
        "source": ["photos", "face", "photos", "photos"],
        "is_negative": torch.tensor([False, False, True, False]),
    }
    outputs = {
        "losses": torch.tensor([1.0, 2.0, 4.0, float("nan")]),
        "sigma": torch.tensor([0.5, 1.0, 3.0, 0.1]),
    }
    breakdown.on_train_batch_end(trainer, MODULE, outputs, batch, 0)
    assert trainer.loggers[0].metrics == {  # the sample that is not a number is left out
        "train/loss_by/sigma/0-1": 1.0,
        "train/loss_by/sigma/1-inf": 3.0,
        "train/loss_by/source/face": 2.0,
        "train/loss_by/source/photos": 2.5,
        "train/loss_by/negative": 4.0,
        "train/loss_by/positive": 1.5,
    }


def test_skipped_samples_are_logged_by_reason() -> None:
    counters = LoaderCounters(["photos"], path=None)
    for _ in range(50):  # workers have read ahead
        counters.count_sample(truncated=False)
    counters.count_skip(0, SampleError("too small"), {})
    trainer = trainer_with(datamodule=SimpleNamespace(counters=counters, global_batch=8))
    DataCounters(every=1).on_train_batch_end(trainer, MODULE)
    assert trainer.loggers[0].metrics == {
        "data/samples": 8.0 * trainer.global_step,
        "data/captions_truncated": 0.0,
        "data/skipped": 1.0,
        "data/skipped/photos/too small": 1.0,
    }


def test_flops_are_put_against_the_peak() -> None:
    logged: dict[str, float] = {}
    recipe = {"stage": "robust_encoder", "architecture": sdxl_architecture()}
    module: Any = SimpleNamespace(
        device=torch.device("cpu"),
        log_dict=lambda metrics, **_: logged.update(metrics),
        recipe=recipe,
    )
    throughput = Throughput(every=1, peak_tflops=1e-6)
    trainer = trainer_with(global_step=0, is_global_zero=True)
    throughput.on_train_start(trainer, module)
    batch = {"hq": torch.zeros(4, 3, 64, 64)}
    throughput.on_train_batch_start(trainer, module, batch, 0)
    trainer.global_step += 1
    throughput.on_train_batch_end(trainer, module, None, batch, 0)
    flops = step_flops(recipe["architecture"], stage="robust_encoder", crop=64)
    assert flops is not None
    tflops = logged["perf/images_per_s"] * sum(flops) / 1e12
    assert logged["perf/tflops_per_device"] == pytest.approx(tflops)
    assert logged["perf/mfu"] == pytest.approx(tflops / 1e-6)
    assert 0 <= logged["perf/data_wait"] <= 1 and logged["perf/peak_memory_gb"] > 0.05


def test_saving_a_checkpoint_is_no_waiting_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: steps of 2 s, waits of 1 s, and 5 s of saving in between."""
    now, logged = [0.0], {}
    monkeypatch.setattr("open_supir.training.monitoring.time.perf_counter", lambda: now[0])
    saver = SimpleNamespace(seconds=3.0)  # from before
    trainer = trainer_with(global_step=0, is_global_zero=False, checkpoint_callbacks=[saver])
    module: Any = SimpleNamespace(
        device=torch.device("cpu"), log_dict=lambda metrics, **_: logged.update(metrics)
    )
    throughput, batch = Throughput(every=2), {"hq": torch.zeros(4, 3, 8, 8)}
    throughput.on_train_start(trainer, module)
    for step in (1, 2):
        now[0] += 1
        throughput.on_train_batch_start(trainer, module, batch, step)
        now[0] += 2
        trainer.global_step = step
        throughput.on_train_batch_end(trainer, module, None, batch, step)
        now[0] += 5
        saver.seconds += 5
    assert logged["perf/data_wait"] == pytest.approx(2 / 6)
    assert logged["perf/images_per_s"] == pytest.approx(8 / 6)
