"""Optimiser settings: the learning-rate curve, groups, refusals."""

import math

import pytest
import torch
from torch import nn

from src.training.optim import OptimSettings, build_optimizer


def test_cosine_follows_the_formula() -> None:
    settings = OptimSettings(
        lr=1.0, warmup_steps=10, decay="cosine", decay_steps=110, final_lr_ratio=0.1
    )
    assert settings.factor(0) == 0.1 and settings.factor(9) == 1.0  # (step + 1) / warmup
    assert math.isclose(settings.factor(60), 0.1 + 0.9 * 0.5)
    assert math.isclose(settings.factor(110), 0.1) and math.isclose(settings.factor(900), 0.1)


def test_constant_stays_at_the_peak() -> None:
    assert OptimSettings(lr=1.0).factor(10**6) == 1.0


def test_norms_and_biases_have_no_weight_decay() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    module[0].requires_grad_(True)
    optimizer, _ = build_optimizer(module.parameters(), OptimSettings(lr=1.0, weight_decay=0.3))
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and [p.shape for p in decayed["params"]] == [(4, 4)]
    assert free["weight_decay"] == 0.0 and all(p.ndim == 1 for p in free["params"])


def test_frozen_parameters_are_left_out() -> None:
    frozen, trained = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    optimizer, _ = build_optimizer(
        [*frozen.parameters(), *trained.parameters()], OptimSettings(lr=1.0)
    )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trained.parameters()}


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": 1.0, "decay": "linear"}, {"lr": 1.0, "decay": "cosine"}]
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        OptimSettings(**wrong)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer([torch.zeros(1)], OptimSettings(lr=1.0))  # type: ignore[list-item]
