"""What a rehearsed training costs, as plain values and as tables."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from open_supir.rehearsal.cards import CARDS, cards
from open_supir.rehearsal.counted import count_training
from open_supir.rehearsal.device import NotPretended
from open_supir.rehearsal.eight_bit import eight_bit_saving
from open_supir.rehearsal.meter import Phase
from open_supir.rehearsal.training import TrainingCost, TrainingPlan, rehearse_training
from open_supir.reports.tables import markdown_table
from open_supir.training.trained_parts import TrainedParts

GIB = 2**30
STATE = "its state counted"  # of 8-bit AdamW
CHECKPOINTED = ("none", "transformer", "full")


def report_training(
    module: TrainedParts, plan: TrainingPlan, *, ranks: int, global_batch: int, max_steps: int,
    eight_bit: bool, sharded: bool, average: bool, device_memory: int | None, mfu: float,
) -> dict[str, Any]:  # fmt: skip
    """Rehearse a run, and what would make it fit where it does not.

    Args:
        module: Built on meta.
        ranks: Devices.
        eight_bit, sharded, average: Whether the run has 8-bit AdamW, FSDP2, an average on the
            device. These three are counted, not simulated.
        device_memory: GB of each device; None asks for all known sizes.
        mfu: Share of the card's rate.

    Returns:
        Values for `training_tables` and JSON; memory in bytes.

    Raises:
        ValueError: A card is unknown, or `mfu` is no share.
    """
    known = cards(device_memory, mfu)
    sizes = parameters(module)
    trained = sum(part["trained"] for part in sizes.values())
    saving = eight_bit_saving(module)
    cost, how = _cost(module, plan)
    chosen = {"eight_bit": eight_bit, "sharded": sharded and ranks > 1}
    extra = 4 * trained if average else 0

    def row(name: str, cost: TrainingCost, by: str, **changes: bool) -> dict[str, Any]:
        changed = chosen | changes
        less = saving * changed["eight_bit"]
        held = (16 if plan.keeps_gradients else 12) * trained  # weights, state, gradients
        less += (held - less) * (1 - 1 / ranks) * changed["sharded"]
        peak = max(cost.peak(cost.first), cost.peak(cost.later)) + extra - less
        a_crop = max(0, peak - (cost.resident + extra - less)) / plan.micro_batch
        fits = {str(c.memory): c.fits(plan.micro_batch, peak, a_crop) for c in known}
        return {"change": name, "by": by, "peak": int(peak), "a_crop": int(a_crop), "fits": fits}

    rows = [row("as configured", cost, f"{how}, {STATE}" if eight_bit else how)]
    if any(answer != "yes" for answer in rows[0]["fits"].values()):
        for mode in CHECKPOINTED[CHECKPOINTED.index(plan.checkpointing) + 1 :]:
            other, by = _cost(module, replace(plan, checkpointing=mode))
            rows.append(row(f"checkpointing={mode}", other, f"{by}, {STATE}" if eight_bit else by))
        if not eight_bit:
            rows.append(row("optim.kind=adamw_8bit", cost, f"{how}, {STATE}", eight_bit=True))
        if ranks > 1 and not sharded:
            rows.append(row("trainer=sharded", cost, "computed", sharded=True))
    micro_steps = max_steps * global_batch / (plan.micro_batch * ranks)
    seconds = {str(c.memory): c.seconds(cost.flops * micro_steps) for c in known}
    return {
        "how": how,
        "plan": {k: str(v) if "torch" in str(v) else v for k, v in asdict(plan).items()},
        "ranks": ranks, "global_batch": global_batch, "max_steps": max_steps, "mfu": mfu,
        "parameters": sizes, "static": cost.static, "resident": cost.resident,
        "flops": cost.flops, "first": _plain(cost.first), "later": _plain(cost.later),
        "rows": rows, "seconds": seconds,
    }  # fmt: skip


def parameters(module: nn.Module) -> dict[str, dict[str, int]]:
    """Count parameters by part; the parts of `network` are parts of their own."""
    found: dict[str, dict[str, int]] = {}
    for name, parameter in module.named_parameters():
        names = name.split(".")
        part = ".".join(names[:2]) if names[0] == "network" else names[0]
        counts = found.setdefault(part, {"all": 0, "trained": 0})
        counts["all"] += parameter.numel()
        counts["trained"] += parameter.numel() * parameter.requires_grad
    return found


def training_tables(report: Mapping[str, Any]) -> str:
    """Return a report as text."""
    plan = report["plan"]
    titles = [f"{size} GB ({CARDS[int(size)]})" for size in report["seconds"]]
    parts = [
        [name, f"{n['all'] / 1e6:.1f}", f"{n['trained'] / 1e6:.1f}"]
        for name, n in report["parameters"].items()
    ]
    phases = [
        [step, name, str(p["launches"]), f"{p['flops'] / 1e12:.2f}", f"{p['peak'] / GIB:.2f}",
         str(sum(p["copies"].values())), str(sum(p["waits"].values()))]
        for step in ("first", "later") for name, p in report[step].items()
    ]  # fmt: skip
    rows = [
        [r["change"], r["by"], f"{r['peak'] / GIB:.1f}", f"{r['a_crop'] / GIB:.2f}",
         *r["fits"].values()]
        for r in report["rows"]
    ]  # fmt: skip
    hours = [f"{seconds / 3600:.1f}" for seconds in report["seconds"].values()]
    waits = [
        f"- {n} x {place}" for p in report["later"].values() for place, n in p["waits"].items()
    ]
    batch = f"{report['global_batch']} crops of {plan['crop']} on {report['ranks']} devices"
    blocks = [
        f"{batch}, {plan['micro_batch']} at once; {report['how']}",
        markdown_table(["part", "parameters, M", "trained, M"], parts),
        f"Static {report['static'] / GIB:.2f} GiB, with the optimiser's state "
        f"{report['resident'] / GIB:.2f} GiB; {report['flops'] / 1e12:.1f} TFLOP a device and "
        f"{plan['micro_batch']} crops.",
        markdown_table(["step", "phase", "launches", "TFLOP", "peak, GiB", "copies", "waits"],
                       phases),
        markdown_table(["change", "by", "peak, GiB", "a crop, GiB", *titles], rows),
        f"Hours for {report['max_steps']} steps at {report['mfu']:.0%} of the card's bf16 rate:",
        markdown_table(["", *titles], [["hours", *hours]]),
    ]  # fmt: skip
    if waits:
        blocks.append("\n".join(["Where a later step waits for the device:", *waits]))
    return "\n\n".join(blocks)


def _cost(module: TrainedParts, plan: TrainingPlan) -> tuple[TrainingCost, str]:
    """Rehearse, or count where this torch cannot pretend; says which."""
    try:
        return rehearse_training(module, plan), "simulated"
    except NotPretended as error:
        return count_training(module, plan), f"counted on meta ({error})"


def _plain(phases: Mapping[str, Phase]) -> dict[str, Any]:
    return {name: phase.plain() for name, phase in phases.items()}
