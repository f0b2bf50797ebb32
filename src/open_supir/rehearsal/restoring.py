"""Rehearsal of restoring: images of given sizes on the pretended GPU, in the ladder's mode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from open_supir.inference import RestoreOptions, Restorer, memory, result
from open_supir.inference.checkpoint import Networks
from open_supir.rehearsal.device import replaced
from open_supir.rehearsal.meter import Meter, Phase
from open_supir.rehearsal.training import give_memory

STEPS = 2  # of the sampler that are run; its other steps cost the same
ENDLESS = 2**60  # bytes


@dataclass(frozen=True, kw_only=True)
class RestoringCost:
    """What one restoration took; memory in bytes."""

    size: tuple[int, int]  # (h, w) of the input in pixels
    working_size: tuple[int, int]  # at which it was restored
    mode: tuple[str, ...]  # tiles asked for, and what the ladder chose; empty for whole images
    weights: int  # on the device, or with offload on the host
    steps: int  # of the sampler
    stages: dict[str, Phase]  # of `min(steps, STEPS)` steps

    @property
    def peak(self) -> int:
        """The highest peak of all stages."""
        return max(phase.peak for phase in self.stages.values())

    @property
    def flops(self) -> float:
        """Operations of the whole restoration."""
        sampled = self.stages["sample"].flops
        rest = sum(phase.flops for phase in self.stages.values()) - sampled
        return rest + sampled * self.steps / min(self.steps, STEPS)


def rehearse_restoring(
    networks: Networks,
    options: RestoreOptions,
    sizes: Sequence[tuple[int, int]],
    *,
    dtype: torch.dtype,
    device_memory: int | None = None,
) -> Iterator[RestoringCost]:
    """Restore one image of each size, without captions.

    Args:
        networks: Built on meta; their parameters are replaced by pretended ones.
        sizes: (h, w) in pixels.
        dtype: Of the networks; with float16 the autoencoder is float32, see `Restorer`.
        device_memory: Bytes by which the ladder chooses; None never asks for less memory.

    Raises:
        NotPretended: This torch cannot pretend to have a GPU.
    """
    meter, total = Meter("other"), device_memory or ENDLESS
    steps, sampler, weights = options.sampler.num_steps, options.sampler, 0
    short = replace(options, num_samples=1, average=False, strength=1.0, mask=None,
                    sampler=replace(sampler, num_steps=min(steps, STEPS)))  # fmt: skip
    stay = replaced(torch.nn.Module, "to", lambda module, *_, **__: module)
    with meter.measuring(backward=False), torch.no_grad(), stay:
        for part in networks:
            if isinstance(part, torch.nn.Module):
                is_vae = part is networks.vae or part is networks.robust_encoder
                kept = torch.float32 if is_vae and dtype == torch.float16 else dtype
                place = "cpu" if options.offload else "cuda"
                part.requires_grad_(False)
                give_memory(part, frozen=kept, channels_last=False, device=place)
                tensors = [*part.parameters(), *part.buffers()]
                weights += sum(t.numel() * t.element_size() for t in tensors)
                for tensor in tensors if options.offload else ():
                    meter.pin(tensor)
        restorer = Restorer(*networks, options=short, device="cuda", dtype=dtype)
        for size in sizes:
            image = torch.full((3, *size), 0.5)
            restorer.prompts.encoded.clear()
            meter.restart()
            with replaced(memory, "_memory", lambda _: total), _staged(meter):
                restored = restorer(image, caption="a photograph of a street")
            tiles = {"vae_tile": options.vae_tile, "tile": options.sampler.tile}
            asked = [f"{name}={side}" for name, side in tiles.items() if side is not None]
            asked += ["offload"] if options.offload else []
            mode = (*asked, *(rung.name for rung in restored.given_up))
            del restored
            yield RestoringCost(
                size=size,
                working_size=options.working_size(*size),
                mode=mode,
                weights=weights,
                steps=steps,
                stages=meter.restart(),
            )


@contextmanager
def _staged(meter: Meter) -> Iterator[None]:
    """Count each stage of a restoration as a phase."""

    @contextmanager
    def timed(call: result.Call, stage: str) -> Iterator[None]:
        call.stage = stage
        with meter.inside(stage):
            yield

    kind: Any = result.Call
    with replaced(kind, "timed", timed):
        yield
