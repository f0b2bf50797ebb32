"""DDP and FSDP2 train as one process does; their checkpoints are the same files."""

import json
from pathlib import Path

import pytest
import torch

from open_supir.training.resume import newest_verified
from tests.training import workers
from tests.training.test_faults import assert_same_state, state
from tests.training.workers import loss_of, run

# Two ranks sum gradients in another order; Adam divides by their size, so a last-bit difference in
# one gradient is one in the update. After a few steps losses differ by some 1e-7.
TOLERANCE = 1e-5


@pytest.mark.parametrize("strategy", [None, "sharded"])
def test_two_ranks_have_the_losses_and_weights_of_one_process(
    tmp_path: Path, strategy: str | None
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    workers.fit(one, steps=5, val_every=2)
    assert run(workers.train_task, 2, two, 2, steps=5, val_every=2, strategy=strategy) == [0, 0]
    losses = [json.loads(f.read_text())["val/loss"] for f in sorted(tmp_path.glob("*/metrics_*"))]
    assert len(losses) == 3 and losses == pytest.approx([losses[0]] * 3, rel=TOLERANCE)
    assert loss_of(two) == pytest.approx(loss_of(tmp_path / "one"), rel=TOLERANCE)
    a, b = state(tmp_path / "one", 5), state(two, 5)
    assert list(a["state_dict"]) == list(b["state_dict"])
    for part in ("state_dict", "ema"):
        for name, tensor in a[part].items():
            assert torch.allclose(tensor, b[part][name], rtol=1e-4, atol=1e-6), name


def test_a_sharded_run_resumes_bit_for_bit_and_its_checkpoint_fits_one_process(
    tmp_path: Path,
) -> None:
    halted, whole = tmp_path / "halted", tmp_path / "whole"
    assert run(workers.train_task, 2, halted, 2, steps=2, strategy="sharded") == [0, 0]
    start = str(newest_verified(halted))
    workers.fit(tmp_path / "one", steps=3, ckpt_path=start)
    again = {"strategy": "sharded", "ckpt_path": start}
    assert run(workers.train_task, 2, halted, 2, steps=4, **again) == [0, 0]
    assert run(workers.train_task, 2, whole, 2, steps=4, strategy="sharded") == [0, 0]
    assert_same_state(state(halted, 4), state(whole, 4))
    one, sharded = loss_of(tmp_path / "one"), loss_of(whole)
    assert {s: sharded[s] for s in one} == pytest.approx(one, rel=TOLERANCE)
