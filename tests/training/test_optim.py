"""Optimiser settings: the learning-rate curve, groups, refusals."""

import math

import pytest
import torch
from torch import nn

from open_supir.training.optim import OptimSettings, build_optimizer


def test_cosine_follows_the_formula() -> None:
    settings = OptimSettings(
        lr=1.0, warmup_steps=10, decay="cosine", decay_steps=110, final_lr_ratio=0.1
    )
    assert settings.factor(0) == 0.1 and settings.factor(9) == 1.0  # (step + 1) / warmup
    assert math.isclose(settings.factor(60), 0.1 + 0.9 * 0.5)
    assert math.isclose(settings.factor(110), 0.1) and math.isclose(settings.factor(900), 0.1)


def test_a_late_part_warms_up_to_the_decayed_rate_without_a_jump() -> None:
    settings = OptimSettings(
        lr=1.0, warmup_steps=10, decay="cosine", decay_steps=110, final_lr_ratio=0.1
    )
    late, all_along = ([settings.factor(s, start) for s in range(150)] for start in (40, 0))
    assert late[:40] == [0.0] * 40 and late[49:] == all_along[49:]
    assert late[44] == pytest.approx(0.5 * all_along[44])  # 5 of 10 warm-up steps
    assert max(late) < 0.8 and late[40:50] == sorted(late[40:50])


def test_constant_stays_at_the_peak() -> None:
    assert OptimSettings(lr=1.0).factor(10**6) == 1.0


def test_norms_and_biases_have_no_weight_decay() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    module[0].requires_grad_(True)
    optimizer, _ = build_optimizer(
        module.named_parameters(), OptimSettings(lr=1.0, weight_decay=0.3)
    )
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and [p.shape for p in decayed["params"]] == [(4, 4)]
    assert free["weight_decay"] == 0.0 and all(p.ndim == 1 for p in free["params"])


def test_frozen_parameters_are_left_out() -> None:
    frozen, trained = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    optimizer, _ = build_optimizer(
        [*frozen.named_parameters(), *trained.named_parameters()], OptimSettings(lr=1.0)
    )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trained.parameters()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": 1.0, "decay": "linear"},
        {"lr": 1.0, "decay": "cosine"},
        {"lr": 1.0, "kind": "sgd"},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        OptimSettings(**wrong)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer([("x", torch.zeros(1))], OptimSettings(lr=1.0))  # type: ignore[list-item]


def test_a_part_that_joins_later_stays_as_it_is_until_then() -> None:
    module = nn.ModuleDict({"late": nn.Linear(2, 2), "early": nn.Linear(2, 2)})
    settings = OptimSettings(lr=0.1, warmup_steps=2, start_steps={"late": 3})
    optimizer, schedule = build_optimizer(module.named_parameters(), settings)
    before = module["late"].weight.clone()
    for step in range(5):
        rates = {group["start"]: group["lr"] for group in optimizer.param_groups}
        assert rates[0] == pytest.approx(0.1 * min(1, (step + 1) / 2))
        assert rates[3] == pytest.approx([0, 0, 0, 0.05, 0.1][step])
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        assert torch.equal(module["late"].weight, before) == (step < 3)


def test_a_part_that_does_not_exist_cannot_join() -> None:
    settings = OptimSettings(lr=1.0, start_steps={"network.controll": 3})
    with pytest.raises(ValueError, match="network.controll"):
        build_optimizer(nn.Linear(2, 2).named_parameters(), settings)


def test_eight_bit_adamw_takes_a_quarter_of_the_state_and_nearly_the_same_steps() -> None:
    """Two states of a byte an element, and a scale a block, against two of four bytes."""
    pytest.importorskip("bitsandbytes")
    modules = [nn.Linear(128, 128, bias=False) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    sizes = []
    for module, kind in zip(modules, ("adamw", "adamw_8bit"), strict=True):
        settings = OptimSettings(lr=1e-3, kind=kind)  # type: ignore[arg-type]
        optimizer, _ = build_optimizer(module.named_parameters(), settings)
        torch.manual_seed(0)
        for _ in range(10):
            module.weight.grad = torch.randn(128, 128)
            optimizer.step()
        state = optimizer.state[module.weight].values()
        moments = [t for t in state if torch.is_tensor(t) and t.shape == module.weight.shape]
        sizes.append(sum(t.numel() * t.element_size() for t in moments))
    assert sizes[1] * 4 == sizes[0]
    moved = (modules[0].weight - modules[1].weight).abs().mean()
    assert moved < 0.1 * 10 * 1e-3  # a tenth of what ten steps of that rate move at most


def test_muon_makes_updates_of_kernels_orthogonal_and_leaves_embeddings_to_adam() -> None:
    module = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "embedding": nn.Embedding(5, 4)})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    settings = OptimSettings(lr=0.1, weight_decay=0.0, kind="muon")
    optimizer, _ = build_optimizer(module.named_parameters(), settings)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradient = module["embedding"].weight.grad  # type: ignore[union-attr]
    optimizer.step()
    steps = {name: (before[name] - p.detach()) / 0.1 for name, p in module.named_parameters()}
    values = torch.linalg.svdvals(steps["conv.weight"].flatten(1)) / (0.2 * 27**0.5)
    assert values.min() > 0.6 and values.max() < 1.25
    # Adam's first step is the sign of the gradient
    torch.testing.assert_close(steps["embedding.weight"], gradient.sign(), atol=1e-4, rtol=0)  # type: ignore[union-attr]
    assert steps["conv.bias"].abs().sub(1).abs().max() < 1e-4


def test_muon_continues_from_its_stored_state_to_the_bit() -> None:
    def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            module(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(6, 3)
        settings = OptimSettings(lr=0.1, kind="muon")
        return module, build_optimizer(module.named_parameters(), settings)[0]

    whole, parts = fresh(), fresh()
    train(*whole, range(6))
    train(*parts, range(3))
    later = fresh()
    later[0].load_state_dict(parts[0].state_dict())
    later[1].load_state_dict(parts[1].state_dict())
    train(*later, range(3, 6))
    torch.testing.assert_close(later[0].weight, whole[0].weight, rtol=0, atol=0)
