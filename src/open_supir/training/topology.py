"""Keeps the global batch the same on any number of devices, or explains why it cannot."""

import lightning.pytorch as pl


def accumulation_steps(global_batch: int, *, ranks: int, micro_batch: int) -> int:
    """Return how many micro-batches of each rank make up the global batch.

    Raises:
        ValueError: No accumulation count fits; the message suggests values.
    """
    at_once = ranks * micro_batch
    if global_batch % at_once == 0:
        return global_batch // at_once
    share, rest = divmod(global_batch, ranks)
    if rest:
        fitting = [n for n in range(1, global_batch + 1) if global_batch % n == 0]
        advice = f"{ranks} ranks do not divide it; use one of {_some(fitting, ranks)} ranks"
    else:
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        advice = f"use data.micro_batch of {_some(fitting, micro_batch)}"
    raise ValueError(
        f"global_batch {global_batch} = {ranks} ranks x {micro_batch} samples x accumulation has "
        f"no whole solution ({global_batch} / {at_once} = {global_batch / at_once:.3f}): {advice}"
    )


def keep_global_batch(trainer: pl.Trainer, *, global_batch: int, micro_batch: int | None) -> None:
    """Set the trainer's accumulation so that a step sees `global_batch` samples on its devices.

    Lightning counts batches until the next validation, and accumulation makes them smaller, so
    `val_check_interval` is scaled to remain a number of steps.

    Args:
        micro_batch: Samples that fit on a device at once; None for a rank's whole share.

    Raises:
        ValueError: See `accumulation_steps`.
    """
    ranks = trainer.num_devices * trainer.num_nodes
    if micro_batch is None:
        at_once = ranks * trainer.accumulate_grad_batches
        micro_batch = max(1, global_batch // at_once)
    steps = accumulation_steps(global_batch, ranks=ranks, micro_batch=micro_batch)
    trainer.accumulate_grad_batches = steps
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= steps


def _some(numbers: list[int], around: int) -> str:
    """List the two nearest numbers below and above `around`."""
    below = [n for n in numbers if n < around][-2:]
    above = [n for n in numbers if n > around][:2]
    return ", ".join(map(str, below + above))
