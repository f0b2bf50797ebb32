"""The micro-batch that fits a card, from the count on meta: what `data.micro_batch: null` means."""

import logging
from dataclasses import replace
from typing import Any

from open_supir.inference.memory import VAE_VALUES, widest_in
from open_supir.networks import AutoencoderKL
from open_supir.networks.vae import MAX_VALUES
from open_supir.rehearsal.counted import count_training
from open_supir.rehearsal.eight_bit import eight_bit_saving
from open_supir.rehearsal.training import TrainingPlan
from open_supir.training import RobustEncoderModule
from open_supir.training.trained_parts import TrainedParts

log = logging.getLogger(__name__)

SHARE = 0.9  # of the memory; the rest is for workspaces, fragmentation and other programs
RECOMPUTED = 1.25  # what a layer recomputes for its gradients comes on top (stage 1, simulated)


def fitting_micro_batch(
    module: TrainedParts, plan: TrainingPlan, *, share: int, ranks: int, memory: int,
    eight_bit: bool, sharded: bool, average: bool,
) -> int:  # fmt: skip
    """Return the largest divisor of a rank's share of the global batch that should fit, at least 1.

    In stage 1 no tensor of the autoencoder has more than `MAX_VALUES` values; without gradients its
    encoder sees to that itself.

    Args:
        module: Stage 1 or 2, built on meta; its dtype changes.
        plan: Its micro-batch does not matter.
        share: Crops of the global batch on each rank.
        memory: Of a device, in bytes.
        eight_bit, sharded, average: See `report_training`.
    """
    vae: Any = module.vae
    pixels = plan.crop**2
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    # gradients that stay between micro-batches take what autocast's copies and they took before
    cost = count_training(module, replace(plan, micro_batch=1, keeps_gradients=True))
    copies = plan.autocast.itemsize * trained if plan.autocast else 0
    kept = cost.peak(cost.later) - cost.resident - copies
    if plan.checkpointing != "none":
        kept *= RECOMPUTED
    item = plan.frozen.itemsize
    a_crop = max(kept, VAE_VALUES * _width(vae) * item * pixels)  # or the encodes' own peak
    saving = eight_bit_saving(module) * eight_bit
    held = cost.resident - saving
    split = (16 * trained - saving) * sharded * (1 - 1 / ranks)
    free = SHARE * memory - (held - split + copies + 4 * trained * average)
    most = free / a_crop
    if isinstance(module, RobustEncoderModule):
        most = min(most, MAX_VALUES / (widest_in(vae) * pixels))
    fitting = [count for count in range(1, share + 1) if share % count == 0 and count <= most]
    if not fitting:
        log.warning("not even one crop should fit this device; dry_run=true tells what would help")
    return max(fitting, default=1)


def _width(vae: AutoencoderKL) -> int:
    """Return the autoencoder's channels at full resolution."""
    return vae.decoder.conv_out.weight.shape[1]
