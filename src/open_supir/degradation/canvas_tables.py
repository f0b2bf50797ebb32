"""What the canvas path needs before it starts: static shapes, and tables for each sample.

Shapes: B batch, O canvas side, T taps per output pixel, K kernel side.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from open_supir.degradation.config import MAX_KERNEL, DegradationConfig, StageConfig
from open_supir.degradation.counter_rng import column_counters, row_counters
from open_supir.degradation.params import NO_JPEG, DegradationParams, StageParams
from open_supir.degradation.taps import resize_table

Tables = dict[str, Tensor]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Shapes fixed by a config and an image size: canvases, LQ, and taps of the three resizes."""

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


def make_tables(params: DegradationParams, config: DegradationConfig, layout: Layout) -> Tables:
    """Compute on the CPU what the device needs to know about each sample, in static shapes."""
    kernels, keys, strengths = params.tensors()
    tables = {"kernels": kernels, "jpeg": params.jpeg_tables(config.jpeg)}
    steps = (
        ("first", params.first, (params.hq_height, params.hq_width), layout.first),
        ("second", params.second, (params.first.height, params.first.width), layout.second),
        ("small", params, (params.second.height, params.second.width), layout.small),
    )
    for taps, (name, p, before, canvas) in zip(layout.taps, steps, strict=True):
        step = _resize_steps(p, before) if name == "first" and config.align != "size" else None
        after = (p.height, p.width)
        square = canvas[0] == canvas[1] and all(torch.equal(*sides) for sides in (before, after))
        for axis, n_in, n_out, length in zip("yx", before, after, canvas, strict=True):
            if square and axis == "x":
                tables |= {key.replace(".y", ".x"): v for key, v in tables.items() if name in key}
                break
            ratio = n_in.float() / n_out.float() if step is None else step[axis]
            index, weight = resize_table(n_in, n_out, ratio, p.mode, length, taps, config.antialias)
            tables[f"{name}.{axis}.index"], tables[f"{name}.{axis}.weight"] = index, weight
            tables[f"{name}.{axis}.end"] = torch.arange(length).minimum(n_out[:, None] - 1)
            if name == "first":
                tables[f"first.{axis}.mirror"] = _mirror(n_out, length)
    for i, (name, stage) in enumerate((("first", params.first), ("second", params.second))):
        # Past an image's borders, the noise of its last row repeats, as the image does.
        tables[f"{name}.rows"] = row_counters(keys[i], tables[f"{name}.y.end"])
        tables[f"{name}.columns"] = column_counters(tables[f"{name}.x.end"])
        tables[f"{name}.gaussian"] = torch.where(stage.noise == 1, strengths[i] / 255, 0.0)
        tables[f"{name}.poisson"] = torch.where(stage.noise == 2, strengths[i], 0.0)
        tables[f"{name}.clean"] = stage.noise == 0
        tables[f"{name}.gray"] = stage.gray
        tables[f"{name}.raw"] = stage.quality == NO_JPEG
    tables |= {name: getattr(params, name) for name in ("jpeg_last", "identity", "back")}
    for axis, canvas, small in zip("yx", layout.second, layout.small, strict=True):
        reduced = torch.arange(canvas).clamp_max(small - 1)
        tables[f"last.{axis}.end"] = torch.where(
            params.jpeg_last[:, None], reduced, tables[f"second.{axis}.end"]
        )
    return tables


def _resize_steps(p: StageParams | DegradationParams, before: tuple[Tensor, Tensor]) -> Tables:
    """Return the source step of an output pixel where the first resize drifts; see `ops.resize`."""
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
