"""The guard: bad steps change nothing, and the host need not wait to know of them."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from open_supir.training.guard import SPIKE_WARMUP, Step, StepGuard
from open_supir.training.optim import OptimSettings, build_optimizer
from open_supir.training.verdict import Findings, judge, parts_of, skips_on_device, squared_norms


def trainer_with(folder: Any, optimizers: list[torch.optim.Optimizer]) -> Any:
    """Return a stand-in for the trainer, which logs at every fourth step."""
    return SimpleNamespace(
        global_step=0, global_rank=0, world_size=1, default_root_dir=str(folder), max_steps=99,
        log_every_n_steps=4, optimizers=optimizers,
    )  # fmt: skip


class Quiet(torch.nn.Linear):
    """A module whose logs are kept."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.logged: list[float] = []

    def log(self, name: str, value: torch.Tensor, **_: Any) -> None:
        assert name == "train/loss" and value.device.type == "cpu"
        self.logged.append(float(value))

    def log_dict(self, *_: Any, **__: Any) -> None: ...


def test_norms_are_by_part() -> None:
    network = {"control": torch.nn.Linear(2, 1, bias=False), "connector": torch.nn.Linear(2, 2)}
    module = torch.nn.ModuleDict({"network": torch.nn.ModuleDict(network)})
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    squares, is_sharded = squared_norms(parts_of(module))
    found = {part: float(square) for part, square in squares.items()}
    assert found == pytest.approx({"network.control": 8.0, "network.connector": 24.0})
    assert not is_sharded


def step_of(number: int) -> Any:
    """Return a step whose verdict nobody asks for."""
    return Step(number=number, turn=0, batches=[{"key": ["k"]}], verdict=SimpleNamespace())  # type: ignore[arg-type]


def test_a_loss_far_above_its_mean_is_an_alarm_and_a_record(tmp_path: Any) -> None:
    guard = StepGuard(str(tmp_path), spike=6.0)
    guard.on_train_start(trainer_with(tmp_path, []), Quiet())  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2 * SPIKE_WARMUP):
        loss = 1.0 + 0.1 * float(torch.randn((), generator=generator))
        guard._watch(step_of(0), Findings({}, [loss], loss, False))
    assert guard.spikes == 0
    guard._watch(step_of(1), Findings({"network.control": 1.0}, [3.0], 3.0, False))
    assert guard.spikes == 1 and (tmp_path / "step_0000001_rank0.json").is_file()
    again = StepGuard(str(tmp_path))
    again.load_state_dict(guard.state_dict())
    assert again.mean == guard.mean and again.spikes == 1


def guarded_steps(tmp_path: Any, kind: Any, losses: list[float]) -> tuple[StepGuard, Quiet, list]:
    """Step with these losses; also returns the weights after each step."""
    guard, module = StepGuard(str(tmp_path), stop_after=3, every=100), Quiet()
    optimizer, _ = build_optimizer(module.named_parameters(), OptimSettings(lr=0.1, kind=kind))
    trainer, module_ = trainer_with(tmp_path, [optimizer]), cast(Any, module)
    guard.on_train_start(trainer, module_)
    weights = []
    for step, scale in enumerate(losses):
        trainer.global_step = step
        guard.on_train_batch_start(trainer, module_, {"key": [f"k{step}"]}, step)
        loss = module(torch.ones(1, 2)).square().sum() * 0 + scale * module.weight.sum()
        guard.on_before_backward(trainer, module_, torch.tensor(scale))
        loss.backward()
        guard.on_before_optimizer_step(trainer, module_, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(module.weight.detach().clone())
    return guard, module, weights


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Any, kind: str) -> None:
    guard, _, weights = guarded_steps(tmp_path, kind, [1.0, float("nan"), 1.0])
    assert weights[0].isfinite().all() and torch.equal(weights[0], weights[1])
    assert weights[2].isfinite().all() and not torch.equal(weights[1], weights[2])
    assert guard.state_dict()["skipped"] == 1 and guard.in_a_row == 0
    record = json.loads((tmp_path / "step_0000001_rank0.json").read_text())
    assert [b["keys"] for b in record["micro_batches"]] == [["k1"]]  # its own, not the next step's


def test_the_host_reads_a_verdict_a_step_later_but_at_logged_steps(tmp_path: Any) -> None:
    """Steps 3 and 7 are logged: their losses are known at once."""
    _, module, _ = guarded_steps(tmp_path, "adamw", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert module.logged == [0.0, 1.0, 3.0, 4.0, 5.0, 7.0]
    _, module, _ = guarded_steps(tmp_path, "muon", [0.0, 1.0, 2.0])
    assert module.logged == [0.0, 1.0, 2.0]  # this optimiser must be stopped by the host


def test_saving_reads_what_is_left_and_refuses_after_too_many_bad_steps(tmp_path: Any) -> None:
    bad = float("inf")
    guard, _, _ = guarded_steps(tmp_path, "adamw", [1.0, bad, bad])
    assert guard.in_a_row == 1 and guard.state_dict()["in_a_row"] == 2
    guard, _, _ = guarded_steps(tmp_path, "adamw", [bad, bad, bad])
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        guard.state_dict()


def test_a_verdict_is_of_the_sum_over_micro_batches() -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    optimizer, _ = build_optimizer(module.named_parameters(), OptimSettings(lr=0.1))
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    found = judge(parts_of(module, optimizer), [torch.tensor(0.5), torch.tensor(0.25)], optimizer)
    assert found.read() == Findings({"weight": 5.0}, [0.5, 0.25], 0.75, False)
    assert skips_on_device(optimizer) and found.read().norm == 5.0
