"""The global batch on any topology: computed, or refused with the arithmetic."""

from types import SimpleNamespace
from typing import Any

import pytest

from open_supir.training.topology import accumulation_steps, keep_global_batch


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "steps"), [(1, 64, 4), (8, 16, 2), (64, 4, 1), (1, 1, 256)]
)
def test_the_global_batch_stays(ranks: int, micro_batch: int, steps: int) -> None:
    assert accumulation_steps(256, ranks=ranks, micro_batch=micro_batch) == steps


def test_a_micro_batch_that_does_not_fit_is_answered_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"256 = 8 ranks x 12 .*micro_batch of 4, 8, 16, 32"):
        accumulation_steps(256, ranks=8, micro_batch=12)


def test_ranks_that_do_not_divide_it_are_answered_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="6 ranks do not divide it; use one of 2, 4, 8, 16 ranks"):
        accumulation_steps(256, ranks=6, micro_batch=4)


def test_what_is_counted_in_steps_stays_counted_in_steps() -> None:
    """Lightning counts micro-batches to the next validation."""
    trainer: Any = SimpleNamespace(
        num_devices=2, num_nodes=2, accumulate_grad_batches=1, val_check_interval=100
    )
    keep_global_batch(trainer, global_batch=64, micro_batch=4)
    assert trainer.accumulate_grad_batches == 4 and trainer.val_check_interval == 400
