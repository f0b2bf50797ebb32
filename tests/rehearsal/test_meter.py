"""What the meter takes for a wait of the host."""

import pytest
import torch

from open_supir.rehearsal.meter import Meter
from open_supir.training.optim import OptimSettings, build_optimizer
from open_supir.training.verdict import Findings, Verdict, judge, parts_of


@pytest.mark.parametrize("steps_later", [0, 1])
def test_a_verdict_read_a_step_later_is_no_wait(steps_later: int) -> None:
    meter = Meter("step")
    with meter.measuring(backward=False), torch.no_grad():
        module = torch.nn.Linear(4, 4, device="cuda")
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer, _ = build_optimizer(module.named_parameters(), OptimSettings(lr=1.0))
        verdict = judge(parts_of(module), [torch.zeros((), device="cuda")], optimizer)
        judged = meter.phases["step"]
        assert judged.copies == {"to the host": 1} and not judged.waits
        for _ in range(steps_later):
            meter.restart()
        found = verdict.read()
    assert found == Findings({"weight": 1.0, "bias": 1.0}, [1.0], 1.0, True)  # ones stand for all
    phase = meter.phases.get("step")
    waits = [] if phase is None else [place.partition(",")[0] for place in phase.waits]
    assert waits == ["event of the same step"] * (1 - steps_later)


def test_a_copy_to_memory_that_is_not_pinned_is_a_wait() -> None:
    meter = Meter("step")
    with meter.measuring(backward=False), torch.no_grad():
        numbers = torch.ones(3, device="cuda")
        torch.empty(3).copy_(numbers, non_blocking=True)
        Verdict(["all"], numbers)
    (wait,) = meter.phases["step"].waits
    assert wait.startswith("copy to the host")
