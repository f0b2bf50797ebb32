"""The static-shape path: a batch at once, every intermediate image in the corner of a canvas.

Sizes differ from sample to sample, shapes do not: resizing is two gathers by per-sample tables of
indices and weights, blurring mirrors at each sample's own borders by an index map, and rows past an
image's end repeat its last one, which is the padding JPEG asks for. So nothing recompiles,
allocations repeat, a CUDA graph can replay it, and the number of kernel launches does not grow
with the batch.

Shapes: B batch, O canvas side, T taps of an output pixel, K kernel side. Images are in [0, 1].
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from src.degradation import ops
from src.degradation.config import MAX_KERNEL, DegradationConfig, StageConfig
from src.degradation.counter_rng import column_counters, normals, pixel_bits, row_counters
from src.degradation.jpeg import CODECS
from src.degradation.params import BACKS, NO_JPEG, DegradationParams, StageParams
from src.degradation.taps import resize_table

Plan = dict[str, Tensor]
Size = tuple[int, int]
_GATHER_LIMIT = 1 << 26  # numbers gathered at once, 256 MiB: larger batches resize in parts


def degrade_on_canvas(
    image: Tensor, params: DegradationParams, config: DegradationConfig
) -> Tensor:
    """Degrade (B, 3, H, W) in [0, 1]; equal to the loop but for rounding."""
    if len(image) == 0:
        return image
    layout = make_layout(config, (image.shape[-2], image.shape[-1]))
    plan = {
        name: value.to(image.device, non_blocking=True)
        for name, value in make_plan(params, config, layout).items()
    }
    return run(image, plan, config, layout)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Shapes that a config and an image size fix: canvases, LQ, and taps of the three resizes."""

    hq: Size
    first: Size
    second: Size
    small: Size
    taps: tuple[int, int, int]


@lru_cache(maxsize=64)
def make_layout(config: DegradationConfig, size: Size) -> Layout:
    """Return the smallest shapes that hold whatever `config` can draw for (H, W) = `size`."""
    sides, taps = [], [1, 1, 1]
    for side in size:
        small = max(math.floor(side / config.scale), config.min_side)
        first = _reach(config.first, side, (side, side), config.min_side)
        second = _reach(config.second, side / config.scale, first, config.min_side)
        sides.append((first[1], max(second[1], small), small))
        steps = (
            (config.first.modes, side, first[0]),
            (config.second.modes, first[1], second[0]),
            (config.modes, second[1], small),
        )
        for i, (modes, largest, smallest) in enumerate(steps):
            taps[i] = max(taps[i], _count_taps(modes, largest / smallest, config.antialias))
    first, second, small = ((tall, wide) for tall, wide in zip(*sides, strict=True))
    return Layout(
        hq=size,
        first=(-first[0] % 16 + first[0], -first[1] % 16 + first[1]),
        second=(-second[0] % 16 + second[0], -second[1] % 16 + second[1]),
        small=small,
        taps=(taps[0], taps[1], taps[2]),
    )


def _reach(stage: StageConfig, base: float, before: Size, min_side: int) -> Size:
    """Return the smallest and largest side that a stage can produce."""
    ranges = (stage.up, stage.down, (1.0, 1.0))
    scales = [s for p, pair in zip(stage.resize_prob, ranges, strict=True) if p > 0 for s in pair]
    sides = [max(math.floor(base * scale), min_side) for scale in scales]
    if stage.prob < 1:
        sides += before
    return min(sides), max(sides)


def _count_taps(modes: tuple[str, ...], ratio: float, antialias: bool) -> int:
    widen = max(ratio, 1.0) if antialias else 1.0
    taps = {
        "area": math.ceil(ratio) + 1,
        "bilinear": 2 * math.ceil(widen) + antialias,
        "bicubic": 4 * math.ceil(widen) + antialias,
    }
    return max(taps[mode] for mode in modes)


def make_plan(params: DegradationParams, config: DegradationConfig, layout: Layout) -> Plan:
    """Compute on the CPU all that the device needs to know about each sample, in static shapes."""
    kernels, keys, strengths = params.tensors()
    plan = {"kernels": kernels, "tables": params.jpeg_tables(config.jpeg)}
    steps = (
        ("first", params.first, (params.hq_height, params.hq_width), layout.first),
        ("second", params.second, (params.first.height, params.first.width), layout.second),
        ("small", params, (params.second.height, params.second.width), layout.small),
    )
    for taps, (name, p, before, canvas) in zip(layout.taps, steps, strict=True):
        step = _resize_steps(p, before) if name == "first" and config.align != "size" else None
        for axis, n_in, n_out, length in zip(
            "yx", before, (p.height, p.width), canvas, strict=True
        ):
            ratio = n_in.float() / n_out.float() if step is None else step[axis]
            index, weight = resize_table(n_in, n_out, ratio, p.mode, length, taps, config.antialias)
            plan[f"{name}.{axis}.index"], plan[f"{name}.{axis}.weight"] = index, weight
            plan[f"{name}.{axis}.end"] = torch.arange(length).minimum(n_out[:, None] - 1)
            if name == "first":
                plan["mirror." + axis] = _mirror(n_out, length)
    for i, (name, stage) in enumerate((("first", params.first), ("second", params.second))):
        # Past an image's borders its last row's noise repeats, as the image does.
        plan[f"{name}.rows"] = row_counters(keys[i], plan[f"{name}.y.end"])
        plan[f"{name}.columns"] = column_counters(plan[f"{name}.x.end"])
        plan[f"{name}.gaussian"] = torch.where(stage.noise == 1, strengths[i] / 255, 0.0)
        plan[f"{name}.poisson"] = torch.where(stage.noise == 2, strengths[i], 0.0)
        plan[f"{name}.clean"] = stage.noise == 0
        plan[f"{name}.gray"] = stage.gray
        plan[f"{name}.raw"] = stage.quality == NO_JPEG
    plan |= {name: getattr(params, name) for name in ("jpeg_last", "identity", "back")}
    for axis, canvas, small in zip("yx", layout.second, layout.small, strict=True):
        reduced = torch.arange(canvas).clamp_max(small - 1)
        plan[f"last.{axis}.end"] = torch.where(
            params.jpeg_last[:, None], reduced, plan[f"second.{axis}.end"]
        )
    return plan


def _resize_steps(p: StageParams | DegradationParams, before: tuple[Tensor, Tensor]) -> Plan:
    """Return the source step of one output pixel where the first resize drifts, as `ops.resize`."""
    assert isinstance(p, StageParams)
    after = (p.height, p.width)
    fits = torch.stack(
        [(n_in * p.scale).floor() == n_out for n_in, n_out in zip(before, after, strict=True)]
    ).all(0)
    return {
        axis: torch.where(fits, (1 / p.scale).float(), n_in.float() / n_out.float())
        for axis, n_in, n_out in zip("yx", before, after, strict=True)
    }


def _mirror(side: Tensor, length: int) -> Tensor:
    """Return (B, length + K - 1) indices that mirror each axis at its own ends."""
    pad = MAX_KERNEL // 2
    last = side[:, None] - 1
    period = (2 * last).clamp_min(1)
    position = torch.arange(-pad, length + pad).abs() % period
    position = torch.where(position > last, period - position, position)
    return torch.where(last == 0, 0, position)


def run(image: Tensor, plan: Plan, config: DegradationConfig, layout: Layout) -> Tensor:
    """Degrade (B, 3, H, W) on its device; only tensor operations in static shapes from here on."""
    hq = image
    if config.sharpen:
        image = ops.unsharp(image)
    if config.first.prob > 0 and config.first.blur.prob > 0:
        padded = ops.reflect_pad(image, MAX_KERNEL // 2)
        image = ops.fft_filter(padded, plan["kernels"][0])
    image = _resize(image, plan, "first")
    image = _noise(image, plan, "first", config.first, config.fewest_levels)
    image = _compress(image, plan, "first", "first", config)
    if config.second.prob > 0 and config.second.blur.prob > 0:
        padded = ops.take(ops.take(image, plan["mirror.y"], 2), plan["mirror.x"], 3)
        image = ops.fft_filter(padded, plan["kernels"][1])
    image = _resize(image, plan, "second")
    image = _noise(image, plan, "second", config.second, config.fewest_levels)
    image = _reduce_and_compress(image, plan, config, layout)
    return _finish(image.clamp(0, 1), hq, plan, config, layout)


def _reduce_and_compress(
    image: Tensor, plan: Plan, config: DegradationConfig, layout: Layout
) -> Tensor:
    """Final resize with sinc filter, and the second JPEG, in each sample's own order.

    Where both orders occur, everything is reduced twice and compressed once: that takes less than
    the other way round.
    """
    height, width = layout.small
    if config.second.jpeg_prob == 0:
        return _reduce(image, plan, config)
    if config.order_prob == 0:
        return _reduce(_compress(image, plan, "second", "last", config), plan, config)
    reduced = _reduce(image, plan, config)
    below, right = layout.second[0] - height, layout.second[1] - width
    reduced = F.pad(reduced, (0, right, 0, below), mode="replicate")
    last = _wide(plan["jpeg_last"])
    image = torch.where(last, reduced, image)
    image = _compress(image, plan, "second", "last", config)
    if config.order_prob == 1:
        return image[..., :height, :width]
    return torch.where(last, image[..., :height, :width], _reduce(image, plan, config))


def _reduce(image: Tensor, plan: Plan, config: DegradationConfig) -> Tensor:
    image = _resize(image, plan, "small")
    if config.sinc_prob == 0:
        return image
    return ops.fft_filter(ops.reflect_pad(image, MAX_KERNEL // 2), plan["kernels"][2])


def _finish(
    image: Tensor, hq: Tensor, plan: Plan, config: DegradationConfig, layout: Layout
) -> Tensor:
    """Bring LQ to its final size, let untouched samples through, and round."""
    if config.resize_back is None:
        untouched = ops.resize(hq, layout.small, "bicubic")
    else:
        untouched = hq
        small, image = image, ops.resize(image, layout.hq, "bicubic")
        if config.resize_back == "random":
            for mode in ("area", "bilinear"):
                other = ops.resize(small, layout.hq, mode)
                image = torch.where(_wide(plan["back"] == BACKS.index(mode)), other, image)
    if config.identity_prob > 0:
        image = torch.where(_wide(plan["identity"]), untouched, image)
    return ops.to_levels(image).div_(255) if config.round else image.clamp(0, 1)


def _compress(
    image: Tensor, plan: Plan, stage: str, canvas: str, config: DegradationConfig
) -> Tensor:
    """Compress by the tables of a stage; the image lies on the named canvas."""
    prob = getattr(config, stage).jpeg_prob
    if prob == 0:
        return image
    _, codec = CODECS[config.jpeg]
    ends = (plan[f"{canvas}.y.end"], plan[f"{canvas}.x.end"])
    coded = codec(image, plan["tables"][("first", "second").index(stage)], ends)
    return coded if prob == 1 else torch.where(_wide(plan[f"{stage}.raw"]), image, coded)


def _noise(image: Tensor, plan: Plan, name: str, ranges: StageConfig, floor: int) -> Tensor:
    """Add each sample's kind of noise; the other kind has strength 0."""
    if ranges.prob * ranges.noise_prob == 0:
        return image
    bits = pixel_bits(plan[f"{name}.rows"], plan[f"{name}.columns"])
    gray = plan[f"{name}.gray"]
    noisy = image
    if ranges.gaussian_prob > 0:
        normal = normals(bits, 3)
        normal = torch.where(_wide(gray), normal[:, :1], normal)
        noisy = torch.addcmul(noisy, normal, _wide(plan[f"{name}.gaussian"]))
    if ranges.gaussian_prob < 1:
        base = torch.where(_wide(gray), ops.luminance(image), image)
        shot = ops.shot_noise(base, bits, floor=floor, shared=gray)
        noisy = torch.addcmul(noisy, shot, _wide(plan[f"{name}.poisson"]))
    noisy = noisy.clamp(0, 1)
    if ranges.prob * ranges.noise_prob == 1:
        return noisy
    return torch.where(_wide(plan[f"{name}.clean"]), image, noisy)


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]


def _resize(image: Tensor, plan: Plan, name: str) -> Tensor:
    """Resize every sample of (B, C, H, W) by its own tables, rows first."""
    image = _weigh(image, plan[f"{name}.y.index"], plan[f"{name}.y.weight"], 2)
    return _weigh(image, plan[f"{name}.x.index"], plan[f"{name}.x.weight"], 3)


def _weigh(image: Tensor, index: Tensor, weight: Tensor, axis: int) -> Tensor:
    per_sample = image[0].numel() // image.shape[axis] * index[0].numel()
    part = max(_GATHER_LIMIT // per_sample, 1)
    parts = []
    for pixels, where, by in zip(*(x.split(part) for x in (image, index, weight)), strict=True):
        tapped = ops.take(pixels, where.flatten(1), axis).unflatten(axis, tuple(where.shape[1:]))
        by = by[:, None, :, :, None] if axis == 2 else by[:, None, None]
        parts.append((tapped * by).sum(axis + 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
