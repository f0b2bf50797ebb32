"""The average: its formula, trained parts only, swapped in for validation."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_supir.training.ema import TrainedEMA


def test_average_follows_its_formula_and_leaves_frozen_parts_out() -> None:
    module: Any = torch.nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    ema, trainer = TrainedEMA(0.5), SimpleNamespace(global_step=0)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]
    with torch.no_grad():
        module.weight.fill_(2.0)
    trainer.global_step = 1
    ema.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    decay = min(0.5, 2 / 11)
    assert list(ema.average) == ["weight"]
    assert ema.average["weight"].item() == pytest.approx(decay * 1.0 + (1 - decay) * 2.0)
    ema.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    assert ema.updates == 1  # an accumulation step moves nothing


def test_an_update_does_not_search_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """At SDXL's size that takes tens of milliseconds of every step."""
    module: Any = torch.nn.Linear(1, 1)
    ema, trainer = TrainedEMA(0.5), SimpleNamespace(global_step=0)
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "named_parameters", None)
    trainer.global_step = 1
    ema.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    assert ema.updates == 1


def test_validation_sees_the_average_and_training_the_raw_weights() -> None:
    module: Any = torch.nn.Linear(1, 1, bias=False)
    ema = TrainedEMA(0.5)
    trainer = SimpleNamespace(global_step=0, state=SimpleNamespace(fn="fit"))
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]
    average = ema.average["weight"].clone()
    with torch.no_grad():
        module.weight.fill_(7.0)
    ema.on_validation_start(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.weight, average)
    ema.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert module.weight.item() == 7.0 and torch.equal(ema.average["weight"], average)


def test_decay_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        TrainedEMA(1.0)


def test_an_average_on_the_cpu_every_few_steps_follows_the_raised_decay() -> None:
    module: Any = torch.nn.Linear(1, 1, bias=False)
    ema, trainer = TrainedEMA(0.5, every=2, device="cpu"), SimpleNamespace(global_step=0)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.on_train_start(trainer, module)  # type: ignore[arg-type]
    with torch.no_grad():
        module.weight.fill_(2.0)
    for trainer.global_step in (1, 2):
        ema.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    decay = min(0.5**2, 2 / 11)  # one update
    assert ema.average["weight"].item() == pytest.approx(decay * 1.0 + (1 - decay) * 2.0)
