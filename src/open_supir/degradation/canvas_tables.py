"""What the canvas path needs before it starts: static shapes, and tables for each sample.

Shapes: B batch, O canvas side, T taps per output pixel, K kernel side.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from open_supir.degradation.config import MAX_KERNEL, MODES, DegradationConfig, StageConfig
from open_supir.degradation.counter_rng import column_counters, row_counters
from open_supir.degradation.params import BACKS, NO_JPEG, DegradationParams, StageParams
from open_supir.degradation.taps import AREA, BICUBIC, count_taps, resize_table

Tables = dict[str, Tensor]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CanvasLayout:
    """Shapes fixed by a config and an image size: canvases, LQ, and taps of the four resizes."""

    hq: Size
    first: Size
    second: Size
    small: Size
    taps: tuple[int, ...]


@lru_cache(maxsize=64)
def make_layout(config: DegradationConfig, size: Size) -> CanvasLayout:
    """Return the smallest shapes that hold whatever `config` can draw for (H, W) = `size`."""
    sides, taps = [], [1, 1, 1, 1]
    for side in size:
        small = max(math.floor(side / config.scale), config.min_side)
        first = _reach(config.first, side, (side, side), config.min_side)
        second = _reach(config.second, side / config.scale, first, config.min_side)
        sides.append((first[1], max(second[1], small), small))
        steps = (
            (config.first.modes, side, first[0]),
            (config.second.modes, first[1], second[0]),
            (config.modes, second[1], small),
            (MODES, side, side if config.resize_back else small),
        )
        for i, (modes, largest, smallest) in enumerate(steps):
            taps[i] = max(taps[i], count_taps(modes, largest / smallest, bool(config.antialias)))
    first, second, small = ((tall, wide) for tall, wide in zip(*sides, strict=True))
    return CanvasLayout(
        hq=size,
        first=(-first[0] % 16 + first[0], -first[1] % 16 + first[1]),
        second=(-second[0] % 16 + second[0], -second[1] % 16 + second[1]),
        small=small,
        taps=tuple(taps),
    )


def _reach(stage: StageConfig, base: float, before: Size, min_side: int) -> Size:
    """Return the smallest and largest side that a stage can produce."""
    ranges = (stage.up, stage.down, (1.0, 1.0))
    scales = [s for p, pair in zip(stage.resize_prob, ranges, strict=True) if p > 0 for s in pair]
    sides = [max(math.floor(base * scale), min_side) for scale in scales]
    if stage.prob < 1:
        sides += before
    return min(sides), max(sides)


def make_tables(
    params: DegradationParams, config: DegradationConfig, layout: CanvasLayout
) -> Tables:
    """Compute on the CPU what the device needs to know about each sample, in static shapes."""
    kernels, keys, strengths = params.tensors()
    tables = {"kernels": kernels, "jpeg": params.jpeg_tables(config.jpeg)}
    tables |= _resize_tables(params, config, layout)
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


def _resize_tables(
    params: DegradationParams, config: DegradationConfig, layout: CanvasLayout
) -> Tables:
    hq = (params.hq_height, params.hq_width)
    first, second, small = ((p.height, p.width) for p in (params.first, params.second, params))
    steps = [
        ("first", params.first.mode, hq, first, layout.first),
        ("second", params.second.mode, first, second, layout.second),
        ("small", params.mode, second, small, layout.small),
    ]
    as_pillow = config.antialias == "pillow"
    if as_pillow and config.resize_back is None:  # of untouched samples
        steps.append(("final", torch.full_like(params.mode, BICUBIC), hq, small, layout.small))
    elif as_pillow:
        steps.append(("final", params.back - BACKS.index(MODES[0]), small, hq, layout.hq))
    kind = torch.float64 if as_pillow else torch.float32
    tables: Tables = {}
    for taps, (name, mode, before, after, canvas) in zip(layout.taps, steps, strict=False):
        drift = name == "first" and config.align != "size"
        step = _drifting_steps(params.first, before) if drift else None
        square = canvas[0] == canvas[1] and all(torch.equal(*sides) for sides in (before, after))
        for axis, n_in, n_out, length in zip("yx", before, after, canvas, strict=True):
            if square and axis == "x":
                tables |= {key.replace(".y", ".x"): v for key, v in tables.items() if name in key}
                break
            ratio = n_in.to(kind) / n_out.to(kind) if step is None else step[axis]
            index, weight = resize_table(
                n_in, n_out, ratio, mode, length, taps, bool(config.antialias)
            )
            tables[f"{name}.{axis}.index"], tables[f"{name}.{axis}.weight"] = index, weight
            tables[f"{name}.{axis}.kept"] = (mode == AREA) | (n_in == n_out)
            tables[f"{name}.{axis}.end"] = torch.arange(length).minimum(n_out[:, None] - 1)
            if name == "first":
                tables[f"first.{axis}.mirror"] = _mirror(n_out, length)
    return tables


def _drifting_steps(p: StageParams, before: tuple[Tensor, Tensor]) -> Tables:
    """Return the source step of an output pixel where the first resize drifts; see `ops.resize`."""
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
