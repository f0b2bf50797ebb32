"""The switches of time and memory in a real run: the same steps come out."""

import shutil
from pathlib import Path

import pytest
import torch

from open_supir.commands.train import train
from tests.integration.conftest import Compose
from tests.integration.test_road import assert_equal, checkpoint, losses

STEPS = ("max_steps=2", "val_every=2", "sampler.num_steps=1", "module.val_draws=1")


def run(composed_in: Compose, experiment: str, name: str, *switches: str) -> None:
    train(composed_in("train", f"experiment={experiment}", *STEPS, *switches, run=name))


def test_checkpointing_trains_the_same_weights(composed_in: Compose, tmp_path: Path) -> None:
    run(composed_in, "zerosft_released", "kept")
    run(composed_in, "zerosft_released", "computed_again", "checkpointing=full")
    states = [checkpoint(tmp_path / name)["state_dict"] for name in ("kept", "computed_again")]
    assert_equal(*states)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("mode", ["regional", "full"])
def test_compiled_run_has_the_losses_of_an_eager_one(
    composed_in: Compose, tmp_path: Path, mode: str
) -> None:
    torch._dynamo.reset()
    run(composed_in, "zerosft", "eager")
    run(composed_in, "zerosft", "compiled", f"compile={mode}", "checkpointing=transformer")
    eager, compiled = (losses(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert list(checkpoint(tmp_path / "eager")["state_dict"]) == list(
        checkpoint(tmp_path / "compiled")["state_dict"]
    )
    torch._dynamo.reset()
