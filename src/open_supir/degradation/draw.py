"""Draw parameters: ranges + seeds -> `DegradationParams`.

Each quantity applies its inverse CDF to a slot of its own in a table of hashed uniforms. So no
branch shifts another quantity, and a sample's parameters depend on its seed alone.

Shapes: B batch; tensors are on the CPU.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from open_supir.degradation.config import MODES, BlurConfig, DegradationConfig, StageConfig
from open_supir.degradation.counter_rng import uniforms
from open_supir.degradation.kernels import NONE, SINC
from open_supir.degradation.params import (
    BACKS,
    NO_JPEG,
    DegradationParams,
    KernelParams,
    StageParams,
)

_BLUR = "blur sinc family side sigma_x sigma_y theta beta_half beta cutoff"
_STAGE = f"stage {_BLUR} direction scale mode noise kind strength gray jpeg quality"
# Append new names at the end, so that existing seeds keep their draws.
SLOTS = (
    *(f"first.{name}" for name in _STAGE.split()),
    *(f"second.{name}" for name in _STAGE.split()),
    *(f"final.{name}" for name in "sinc side cutoff mode order identity back".split()),
)
Slot = Callable[[str], Tensor]


def draw_params(
    config: DegradationConfig, seeds: Tensor, size: tuple[int, int]
) -> DegradationParams:
    """Draw the parameters of a batch.

    Args:
        seeds: (B,) int64 on the CPU.
        size: (H, W) of the HQ images.
    """
    table = uniforms(seeds, len(SLOTS))
    column = {name: table[:, i] for i, name in enumerate(SLOTS)}
    hq = torch.tensor(size).expand(len(seeds), 2)
    lq = _scaled(hq.double() / config.scale, torch.ones(len(seeds)), config.min_side)
    first = _draw_stage(config.first, lambda name: column[f"first.{name}"], hq.double(), hq, config)
    second = _draw_stage(
        config.second,
        lambda name: column[f"second.{name}"],
        hq.double() / config.scale,
        torch.stack([first.height, first.width], 1),
        config,
    )
    if config.resize_back == "random":
        back = 1 + _pick(column["final.back"], MODES)
    else:
        back = torch.full_like(seeds, BACKS.index(config.resize_back or "none"))
    return DegradationParams(
        seed=seeds,
        hq_height=hq[:, 0],
        hq_width=hq[:, 1],
        first=first,
        second=second,
        sinc=_draw_final_sinc(config, lambda name: column[f"final.{name}"]),
        height=lq[:, 0],
        width=lq[:, 1],
        mode=_pick(column["final.mode"], config.modes),
        jpeg_last=column["final.order"] < config.order_prob,
        back=back,
        identity=column["final.identity"] < config.identity_prob,
    )


def _draw_stage(
    config: StageConfig, slot: Slot, base: Tensor, before: Tensor, whole: DegradationConfig
) -> StageParams:
    """Draw one stage; sizes are `base` (B, 2) times the scale, or `before` where it is skipped."""
    active = slot("stage") < config.prob
    direction = _categorical(slot("direction"), config.resize_prob)
    up, down = _between(slot("scale"), config.up), _between(slot("scale"), config.down)
    scale = torch.where(direction == 0, up, torch.where(direction == 1, down, 1.0))
    size = torch.where(active[:, None], _scaled(base, scale, whole.min_side), before)
    gaussian = slot("kind") < config.gaussian_prob
    strength = torch.where(
        gaussian,
        _between(slot("strength"), config.sigma),
        _between(slot("strength"), config.poisson),
    )
    noisy = active & (slot("noise") < config.noise_prob)
    compressed = slot("jpeg") < config.jpeg_prob
    return StageParams(
        kernel=_draw_kernel(config.blur, slot, active),
        height=size[:, 0],
        width=size[:, 1],
        scale=torch.where(active, scale, 1.0),
        mode=_pick(slot("mode"), config.modes),
        noise=torch.where(noisy, torch.where(gaussian, 1, 2), 0),
        strength=torch.where(noisy, strength, 0.0),
        gray=noisy & (slot("gray") < config.gray_prob),
        quality=torch.where(compressed, _between(slot("quality"), config.jpeg), NO_JPEG),
    )


def _draw_kernel(config: BlurConfig, slot: Slot, active: Tensor) -> KernelParams:
    family = _categorical(slot("family"), config.families)
    kind = torch.where(slot("sinc") < config.sinc_prob, SINC, family)
    kind = torch.where(active & (slot("blur") < config.prob), kind, NONE)
    side = _odd(slot("side"), config.sizes)
    rotated = (kind == 1) | (kind == 3) | (kind == 5)
    sigma_x = _between(slot("sigma_x"), config.sigma)
    low_half = slot("beta_half") < 0.5
    beta = torch.ones_like(sigma_x)
    for kinds, (low, high) in (((2, 3), config.beta_generalized), ((4, 5), config.beta_plateau)):
        drawn = torch.where(
            low_half, _between(slot("beta"), (low, 1.0)), _between(slot("beta"), (1.0, high))
        )
        beta = torch.where((kind == kinds[0]) | (kind == kinds[1]), drawn, beta)
    lowest = torch.where(side < 13, math.pi / 3, math.pi / 5)
    return KernelParams(
        kind=kind,
        side=side,
        sigma_x=sigma_x,
        sigma_y=torch.where(rotated, _between(slot("sigma_y"), config.sigma), sigma_x),
        theta=torch.where(rotated, _between(slot("theta"), (-math.pi, math.pi)), 0.0),
        beta=beta,
        cutoff=lowest + slot("cutoff") * (math.pi - lowest),
    )


def _draw_final_sinc(config: DegradationConfig, slot: Slot) -> KernelParams:
    used = slot("sinc") < config.sinc_prob
    ones = torch.ones_like(slot("sinc"))
    return KernelParams(
        kind=torch.where(used, SINC, NONE),
        side=_odd(slot("side"), config.sinc_sizes),
        sigma_x=ones,
        sigma_y=ones,
        theta=0 * ones,
        beta=ones,
        cutoff=_between(slot("cutoff"), config.sinc_cutoff),
    )


def _between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _categorical(u: Tensor, probabilities: tuple[float, ...]) -> Tensor:
    edges = torch.tensor(probabilities, dtype=torch.float64).cumsum(0)[:-1]
    return (u[:, None] >= edges).sum(1)


def _pick(u: Tensor, modes: tuple[str, ...]) -> Tensor:
    return torch.tensor([MODES.index(mode) for mode in modes])[(u * len(modes)).long()]


def _odd(u: Tensor, sizes: tuple[int, int]) -> Tensor:
    return sizes[0] + 2 * (u * ((sizes[1] - sizes[0]) // 2 + 1)).long()


def _scaled(base: Tensor, scale: Tensor, min_side: int) -> Tensor:
    return (base * scale[:, None]).floor().long().clamp_min(min_side)
