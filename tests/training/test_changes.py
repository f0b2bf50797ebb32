"""What a resumed run may change, and that it takes effect from the first step on."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from open_supir.training.changes import check_changes, setting_changes
from open_supir.training.optim import OptimSettings, build_optimizer, set_rates

RUN: dict[str, Any] = {
    "stage": "supir",
    "denoiser": {"prediction": "eps", "quantize": True},
    "noise": {"power": 1.0},
    "degradation": {"config": {"blur": 0.5}},
    "optim": {"lr": 1e-4, "kind": "adamw", "start_steps": {}},
    "module": {"offset_noise": 0.0, "optim": {"lr": 1e-4}},
    "run_dir": "a",
}


def changed(**groups: Any) -> dict[str, Any]:
    return {k: v | groups[k] if k in groups else v for k, v in RUN.items()}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"denoiser": {"prediction": "v"}}, "denoiser.prediction: eps -> v"),
        ({"noise": {"mean": -1}}, "noise.mean: absent -> -1"),
        ({"optim": {"kind": "adamw_8bit"}}, "optim.kind: adamw -> adamw_8bit"),
        ({"optim": {"start_steps": {"network.control": 9}}}, "network.control: absent -> 9"),
    ],
)
def test_what_makes_another_run_is_refused(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot resume with .*{message}.*: restore"):
        check_changes(RUN, changed(**groups))


def test_other_changes_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    new = changed(
        degradation={"config": {"blur": 0.7}, "sharpen": True},
        module={"offset_noise": 0.1, "optim": {"lr": 2e-4}},
        optim={"lr": 2e-4},
    ) | {"run_dir": "b"}
    check_changes(RUN, new)
    assert caplog.messages == [
        "resuming with other settings: degradation.config.blur: 0.5 -> 0.7; "
        "optim.lr: 0.0001 -> 0.0002; module.offset_noise: 0.0 -> 0.1; "
        "degradation.sharpen: absent -> True"
    ]


def test_no_change_is_no_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_changes(RUN, RUN | {"run_dir": "b", "data": {"new_key": 1}})
    assert not caplog.messages and not setting_changes(RUN, RUN)


def test_rates_are_those_of_the_settings_at_the_step() -> None:
    """Cosine from 1 at step 10 to 0 at step 110: half way, half the rate."""
    weight = nn.Parameter(torch.zeros(2, 2))
    settings = OptimSettings(lr=1.0, warmup_steps=10, decay="cosine", decay_steps=110,
                             final_lr_ratio=0.0)  # fmt: skip
    optimizer, schedule = build_optimizer([("weight", weight)], settings)
    schedule.last_epoch = 60
    optimizer.param_groups[0] |= {"initial_lr": 4.0, "lr": 77.0}
    set_rates(schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0, abs=1e-12)
    assert schedule.get_last_lr() == pytest.approx([2.0], abs=1e-12)
    optimizer.step()
    schedule.step()
    expected = 4 * 0.5 * (1 + torch.tensor(51 / 100 * torch.pi).cos().item())
    assert schedule.get_last_lr() == pytest.approx([expected], rel=1e-6)
