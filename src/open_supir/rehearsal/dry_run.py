"""The dry run of `src.train`: settings in, tables and a report file out."""

from collections.abc import Mapping
from typing import Any

import torch

from open_supir.base.dtypes import parse_dtype
from open_supir.rehearsal.report_files import write_report
from open_supir.rehearsal.training import TrainingPlan
from open_supir.rehearsal.training_report import report_training, training_tables
from open_supir.training.topology import accumulation_steps
from open_supir.training.trained_parts import TrainedParts

AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16,
            "16-mixed": torch.float16, "16": torch.float16}  # fmt: skip


def check_rehearsable(config: Mapping[str, Any]) -> None:
    """Check that a run's experiment can be rehearsed, before its module is built.

    Raises:
        ValueError: It has a discriminator, or trains a prior of its own.
    """
    name = str(config["module"]["_target_"]).rpartition(".")[2]
    if name in ("OneStepModule", "PriorModule", "VAEModule"):
        raise ValueError(
            f"dry_run=true rehearses stages 1 and 2, not experiment={config['name']} ({name}); "
            "benchmarks/one_step_cost.py counts the one-step stage"
        )


def dry_run_training(module: TrainedParts, config: Mapping[str, Any]) -> str:
    """Rehearse a run; returns tables, and writes the file that `report` names.

    Args:
        module: Built on meta.
        config: Of the run.

    Raises:
        ValueError: The global batch cannot be split so, a card is unknown, or `mfu` is no share.
    """
    trainer, data = config["trainer"], config["data"]
    strategy = trainer["strategy"]
    kind = strategy["_target_"] if isinstance(strategy, Mapping) else str(strategy)
    ranks = _devices(trainer["devices"]) * trainer.get("num_nodes", 1)
    total, batches = data["global_batch"], trainer["accumulate_grad_batches"]
    micro_batch = data["micro_batch"] or max(1, total // (ranks * batches))
    steps = accumulation_steps(total, ranks=ranks, micro_batch=micro_batch)
    sharded = kind.endswith("ShardedStrategy")
    average = config["callbacks"].get("ema") or {}
    plan = TrainingPlan(
        crop=data["crop_size"],
        micro_batch=micro_batch,
        keeps_gradients=steps > 1 or (ranks > 1 and not sharded),
        autocast=AUTOCAST.get(str(trainer["precision"])),
        frozen=parse_dtype(config["weights"]["frozen_dtype"]),
        channels_last=config["channels_last"],
        checkpointing=config["checkpointing"],
        clip=trainer["gradient_clip_val"],
    )
    report = report_training(
        module,
        plan,
        ranks=ranks,
        global_batch=total,
        max_steps=config["max_steps"],
        eight_bit=config["optim"]["kind"] == "adamw_8bit",
        sharded=sharded,
        average=bool(average) and average.get("device") != "cpu",
        device_memory=config["device_memory"],
        mfu=config["mfu"],
    )
    write_report(report, config["report"])
    return training_tables(report)


def _devices(setting: Any) -> int:
    """Return the devices of a node; `auto` counts this machine's GPUs, at least one."""
    if isinstance(setting, list):
        return len(setting)
    if isinstance(setting, int) and setting > 0:
        return setting
    return max(1, torch.cuda.device_count())
