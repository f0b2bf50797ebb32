"""The dry run of `src.train`: settings in, tables and a report file out."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from open_supir.base.devices import total_memory
from open_supir.base.dtypes import parse_dtype
from open_supir.base.run_folders import remove_empty_run
from open_supir.rehearsal.cards import GB, cards
from open_supir.rehearsal.device import NotPretended, prepare_backward
from open_supir.rehearsal.fitting import fitting_micro_batch
from open_supir.rehearsal.report_files import write_report
from open_supir.rehearsal.training import TrainingPlan
from open_supir.rehearsal.training_report import report_training, training_tables
from open_supir.training.settings import check_settings
from open_supir.training.topology import accumulation_steps
from open_supir.training.trained_parts import TrainedParts

log = logging.getLogger(__name__)

AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16,
            "16-mixed": torch.float16, "16": torch.float16}  # fmt: skip

Build = Callable[..., TrainedParts]  # builds a module from its settings and `recipe`


def dry_run_training(config: Mapping[str, Any], build: Build) -> str:
    """Rehearse a run; returns tables, and writes the file that `report` names.

    Leaves no run folder.

    Args:
        config: Of the run. A micro-batch that is left open is the largest that fits
            `device_memory`, or the largest card known; the whole share in other stages than 1
            and 2.

    Raises:
        ValueError: A setting is out of its range, the stage cannot be rehearsed, the global batch
            cannot be split so, a card is unknown, or `mfu` is no share.
    """
    try:
        return _rehearse(config, build)
    finally:
        remove_empty_run(Path(config["run_dir"]), Path(config["runs_dir"]))


def _rehearse(config: Mapping[str, Any], build: Build) -> str:
    check_settings(config)
    if _kind(config) == "VAEModule":
        name = config["name"]
        raise ValueError(f"dry_run=true does not rehearse experiment={name}, an autoencoder's")
    settings, left_out = without_files(config["module"])
    module = _on_meta(build, settings)
    with suppress(NotPretended):  # it is said in the report
        prepare_backward()  # choosing the micro-batch runs one on meta
    trainer, data = config["trainer"], config["data"]
    ranks = _devices(trainer["devices"]) * trainer.get("num_nodes", 1)
    total, memory = data["global_batch"], config["device_memory"]
    largest = cards(memory, config["mfu"])[-1].memory * GB
    micro_batch = chosen_micro_batch(module, config, ranks=ranks, memory=largest)
    steps = accumulation_steps(total, ranks=ranks, micro_batch=micro_batch)
    kinds = kinds_of(config)
    keeps = steps > 1 or (ranks > 1 and not kinds["sharded"])
    report = report_training(
        module,
        plan_of(config, micro_batch=micro_batch, keeps_gradients=keeps),
        ranks=ranks,
        global_batch=total,
        max_steps=config["max_steps"],
        **kinds,
        device_memory=memory,
        mfu=config["mfu"],
    )
    report["left_out"] = left_out
    write_report(report, config["report"])
    return "\n\n".join([training_tables(report), *(f"Not rehearsed: {w}." for w in left_out)])


def without_files(module: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a module's settings such that it needs no weight files, and what is not rehearsed.

    Raises:
        ValueError: LoRA layers are to be trained, which are added to loaded weights.
    """
    settings: dict[str, Any] = deepcopy(dict(module))
    if "discriminator" not in settings:
        return settings, []
    if settings["unet_lora"] is not None:
        raise ValueError("dry_run=true does not rehearse one_step.unet_lora; leave it out")
    sampler, discriminator = settings["sampler"]["spec"], settings["discriminator"]
    if sampler["sigma"] is None:
        sampler["sigma"] = 0.2  # training measures it; costs do not depend on it
    settings["scores"] = None  # of validation
    if "weights" in discriminator:
        discriminator["weights"] = None
    if settings["perceptual"] is None:
        return settings, []
    settings["perceptual"] = None
    why = "LPIPS needs its weight files; the distance of the encoder's features stands in for it"
    return settings, [why]


def micro_batch_for(
    device: torch.device, config: Mapping[str, Any], build: Build, *, ranks: int
) -> int | None:
    """Choose the micro-batch of a run by the memory of its GPU.

    None if it is to be the whole share: on other devices, and in other stages than 1 and 2.
    """
    if device.type != "cuda" or not is_counted(config):
        return None
    memory = total_memory(torch.device("cuda", 0))  # the same on all ranks
    module = _on_meta(build, config["module"])
    chosen = chosen_micro_batch(module, config, ranks=ranks, memory=memory)
    log.info("data.micro_batch=%d should fit this GPU's %.0f GB", chosen, memory / 1e9)
    return chosen


def is_counted(config: Mapping[str, Any]) -> bool:
    """Return whether a run is of stage 1 or 2, which can be counted on meta."""
    return _kind(config) not in ("OneStepModule", "PriorModule", "VAEModule")


def chosen_micro_batch(
    module: TrainedParts, config: Mapping[str, Any], *, ranks: int, memory: int
) -> int:
    """Return a run's micro-batch: as configured, else the largest that fits.

    Args:
        module: Built on meta; its dtype changes.
        ranks: Devices.
        memory: Of each device, in bytes.
    """
    data, accumulated = config["data"], config["trainer"]["accumulate_grad_batches"]
    share = max(1, data["global_batch"] // ranks)
    if data["micro_batch"] or accumulated > 1 or not is_counted(config):
        return data["micro_batch"] or max(1, share // accumulated)
    plan, kinds = plan_of(config, micro_batch=1), kinds_of(config)
    return fitting_micro_batch(module, plan, share=share, ranks=ranks, memory=memory, **kinds)


def plan_of(
    config: Mapping[str, Any], *, micro_batch: int, keeps_gradients: bool = False
) -> TrainingPlan:
    """Return what a run's step on one device looks like."""
    trainer = config["trainer"]
    return TrainingPlan(
        crop=config["data"]["crop_size"],
        micro_batch=micro_batch,
        keeps_gradients=keeps_gradients,
        autocast=AUTOCAST.get(str(trainer["precision"])),
        frozen=parse_dtype(config["weights"]["frozen_dtype"]),
        channels_last=config["channels_last"],
        checkpointing=config["checkpointing"],
        clip=trainer["gradient_clip_val"],
    )


def kinds_of(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether a run has 8-bit AdamW, FSDP2, and an average on the device."""
    strategy = config["trainer"]["strategy"]
    kind = strategy["_target_"] if isinstance(strategy, Mapping) else str(strategy)
    average = config["callbacks"].get("ema") or {}
    return {
        "eight_bit": config["optim"]["kind"] == "adamw_8bit",
        "sharded": kind.endswith("ShardedStrategy"),
        "average": bool(average) and average.get("device") != "cpu",
    }


def _kind(config: Mapping[str, Any]) -> str:
    return str(config["module"]["_target_"]).rpartition(".")[2]


def _on_meta(build: Build, settings: Mapping[str, Any]) -> TrainedParts:
    with torch.device("meta"):
        return build(settings, recipe={})


def _devices(setting: Any) -> int:
    """Return the devices of a node; `auto` counts this machine's GPUs, at least one."""
    if isinstance(setting, list):
        return len(setting)
    if isinstance(setting, int) and setting > 0:
        return setting
    return max(1, torch.cuda.device_count())
