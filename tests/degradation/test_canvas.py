"""The canvas path against the loop, and its tables against torch's interpolation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo import register_backend
from torch.utils._python_dispatch import TorchDispatchMode

from open_supir.degradation import (
    DegradationConfig,
    DegradationPipeline,
    StageConfig,
    cached,
    canvas,
    ops,
)
from open_supir.degradation.canvas import run_eagerly as run
from open_supir.degradation.canvas_tables import make_layout, make_tables
from open_supir.degradation.config import MODES
from open_supir.degradation.taps import resize_table
from open_supir.rehearsal.meter import Meter

from .samples import PRESETS, VIEWS, config, photo, photos


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.15, 0.37, 0.6180339, 1.0, 1.2345, 1.5])
@pytest.mark.parametrize("drift", [False, True])
def test_tables_equal_torchs_interpolation(mode: str, scale: float, drift: bool) -> None:
    """2e-6: coordinates are computed in float32, as torch does."""
    image = photo("astronaut.png", 1, 131)
    side = int(131 * scale)
    if drift and mode != "area":
        expected = F.interpolate(image, size=None, scale_factor=(1.0, scale), mode=mode)
        ratio = torch.tensor([1 / scale])
    else:
        expected = F.interpolate(image, size=(1, side), mode=mode)
        ratio = torch.tensor([131 / side])
    index, weight = resize_table(
        torch.tensor([131]),
        torch.tensor([side]),
        ratio,
        torch.tensor([MODES.index(mode)]),
        208,
        9,
        False,
    )
    result = (image[0, :, 0][:, index[0]] * weight[0]).sum(-1)
    assert (result[:, :side] - expected[0, :, 0]).abs().max() < 2e-6
    assert torch.equal(result[:, side:], result[:, side - 1 : side].expand(-1, 208 - side))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [17, 33, 90])
def test_antialiased_tables_equal_torchs(mode: str, side: int) -> None:
    image = photo("astronaut.png", 8, 64).expand(-1, -1, -1, -1)
    expected = F.interpolate(image, size=(8, side), mode=mode, antialias=True)
    index, weight = resize_table(
        torch.tensor([64]),
        torch.tensor([side]),
        torch.tensor([64 / side]),
        torch.tensor([MODES.index(mode)]),
        side,
        17,
        True,
    )
    result = (image[0][:, :, index[0]] * weight[0]).sum(-1)
    assert (result - expected[0]).abs().max() < 3e-6


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(64, 57), (96, 128)])
def test_canvas_equals_loop(name: str, size: tuple[int, int]) -> None:
    """A rounding decided otherwise may change a JPEG block: seldom, and by a few levels.

    At most 1 % of values differ by a level, and nine samples in ten not at all to 0.1 %.
    """
    ranges, seeds = config(name), torch.arange(12) + 300
    hq = photos(12, *size)
    loop, canvas = (DegradationPipeline(ranges, path=path) for path in ("loop", "canvas"))
    difference = (loop(hq, seeds) - canvas(hq, seeds)).abs() * 127.5 > 0.5
    share = difference.float().mean((1, 2, 3))
    assert share.mean() <= 0.01
    assert (share > 1e-3).sum() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"identity_prob": 0.5},
        {"resize_back": "random"},
        {"sharpen": True},
        {"poisson_levels": "fixed"},
        {"order_prob": 1.0, "round": False},
        {"order_prob": 0.0, "antialias": True},
        {"antialias": "pillow", "resize_back": "random"},
        {"jpeg": "diffjpeg", "align": "scale_factor"},
        {"min_side": 20},
    ],
)
def test_canvas_equals_loop_for_every_switch(changes: dict) -> None:
    ranges = dataclasses.replace(config("supir_q"), **changes)
    hq, seeds = photos(8, 64, 64), torch.arange(8) + 77
    loop, canvas = (DegradationPipeline(ranges, path=path) for path in ("loop", "canvas"))
    difference = (loop(hq, seeds) - canvas(hq, seeds)).abs() * 127.5
    assert (difference > 0.5).float().mean() <= 0.01


@pytest.mark.parametrize("name", ["supir_q", "realesrgan_x4"])
def test_canvas_and_loop_agree_after_the_first_jpeg(name: str) -> None:
    """Bit-equal but for at most .1 % of values, where one rounding went the other way."""
    full = config(name)
    quiet = dataclasses.replace(full.first, noise_prob=0.0)
    nothing = StageConfig(prob=0.0)
    ranges = dataclasses.replace(
        full, first=quiet, second=nothing, scale=1.0, sinc_prob=0.0, resize_back=None, round=False
    )
    ranges = dataclasses.replace(ranges, modes=("area",))
    hq, seeds = photos(24, 96, 80), torch.arange(24)
    loop, canvas = (DegradationPipeline(ranges, path=path) for path in ("loop", "canvas"))
    assert ((loop(hq, seeds) - canvas(hq, seeds)).abs() > 1e-5).float().mean() <= 1e-3


def test_resize_and_blur_alone_agree_to_rounding() -> None:
    """No noise, no JPEG, no rounding: nothing amplifies the last bit."""
    ranges = _without_noise_and_rounding(config("supir_q"))
    hq, seeds = photos(16, 64, 80), torch.arange(16)
    loop, canvas = (DegradationPipeline(ranges, path=path) for path in ("loop", "canvas"))
    assert (loop(hq, seeds) - canvas(hq, seeds)).abs().max() < 2e-5


def _without_noise_and_rounding(ranges: DegradationConfig) -> DegradationConfig:
    first, second = (
        dataclasses.replace(stage, noise_prob=0.0, jpeg_prob=0.0)
        for stage in (ranges.first, ranges.second)
    )
    return dataclasses.replace(ranges, first=first, second=second, round=False)


def test_shapes_are_static_and_launches_few() -> None:
    """One layout for every draw; at most 300 kernels, whatever the batch. Views launch nothing."""
    ranges, size = config("supir_q"), (64, 64)
    layout = make_layout(ranges, size)
    assert layout.first == (96, 96) and layout.second == (32, 32) and layout.small == (16, 16)
    pipeline = DegradationPipeline(ranges, path="canvas")
    pipeline(photos(2, *size), torch.arange(2))  # tables are built once
    shapes, counts = set(), set()
    for count, seed in ((2, 0), (5, 40)):
        params = pipeline.draw(torch.arange(count) + seed, size=size)
        tables = make_tables(params, ranges, layout)
        batch_axis = {"kernels": 1, "jpeg": 1}
        shapes.add(
            tuple(
                tuple(s for i, s in enumerate(v.shape) if i != batch_axis.get(k, 0))
                for k, v in sorted(tables.items())
            )
        )
        image = photos(count, *size) / 2 + 0.5
        with _Counter() as counter, torch.no_grad():
            run(image, tables, ranges, layout)
        counts.add(counter.launches)
    assert len(shapes) == 1 and len(counts) == 1
    assert counts.pop() <= 300


def test_stage_without_probability_costs_no_launch() -> None:
    ranges = dataclasses.replace(
        config("supir_q"), first=StageConfig(), second=StageConfig(), sinc_prob=0.0
    )
    pipeline = DegradationPipeline(ranges)
    layout = make_layout(ranges, (64, 64))
    tables = make_tables(pipeline.draw(torch.arange(2), size=(64, 64)), ranges, layout)
    image = photos(2, 64, 64) / 2 + 0.5
    with _Counter() as counter, torch.no_grad():
        run(image, tables, ranges, layout)
    assert counter.launches <= 40


class _Counter(TorchDispatchMode):
    """How many operators ran that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.launches += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def test_gpus_take_as_many_samples_as_memory_bears_and_cpus_one() -> None:
    layout = make_layout(config("supir_q"), (512, 512))
    assert canvas._samples_at_once(torch.device("cuda"), layout) == 16
    assert canvas._samples_at_once(torch.device("cpu"), layout) == 1


@pytest.mark.parametrize(("at_once", "expected"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8])])
def test_batches_are_degraded_in_parts(
    at_once: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal but for the last bits of batched arithmetic, which nothing amplifies here."""
    ranges, sizes = _without_noise_and_rounding(config("supir_q")), []

    def recorded(image: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(image))
        return run(image, *rest)

    pipeline = DegradationPipeline(ranges, path="canvas")
    hq, seeds = photos(8, 64, 64), torch.arange(8)
    whole = pipeline(hq, seeds)
    monkeypatch.setattr(canvas, "_samples_at_once", lambda *_: at_once)
    pipeline.run = recorded
    assert (pipeline(hq, seeds) - whole).abs().max() < 1e-5
    assert sizes == expected


def test_parts_of_a_batch_outlive_a_graph_that_owns_its_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with CUDA graphs, where each replay overwrites what the one before gave."""
    kept: dict[torch.Size, torch.Tensor] = {}

    def reusing(function: Callable[..., torch.Tensor], **_: Any) -> Callable[..., torch.Tensor]:
        def replay(*args: Any) -> torch.Tensor:
            out = function(*args)
            return kept.setdefault(out.shape, torch.empty_like(out)).copy_(out)

        return replay

    monkeypatch.setattr(torch, "compile", reusing)
    ranges, hq, seeds = config("supir_q"), photos(3, 64, 64), torch.arange(3)
    pipeline = DegradationPipeline(ranges, path="canvas", compile="cudagraphs")
    plain = DegradationPipeline(ranges, path="canvas")(hq, seeds)
    batches = [pipeline(hq, seeds) for _ in range(2)]  # on a CPU, a part is one sample
    assert kept and all(torch.equal(lq, plain) for lq in batches)


def test_sharpening_copies_nothing_once_its_table_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy from the host would keep it out of a CUDA graph."""
    monkeypatch.setattr(cached, "_KEPT", {})
    meter = Meter("all")
    with meter.measuring(backward=False):
        image = torch.zeros(1, 3, 64, 64, device="cuda")
        ops.unsharp(image)
        meter.restart()
        ops.unsharp(image)
    [phase] = meter.phases.values()
    assert phase.launches > 5 and not phase.copies


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_canvas_compiles_as_one_graph_that_serves_every_draw() -> None:
    """Tables are inputs of the graph: no quantile function is computed in it."""
    graphs = []

    def backend(module: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(module)
        return module.forward

    ranges, hq = config("supir_q"), photos(4, 64, 64)
    register_backend(backend, "recording")
    pipeline = DegradationPipeline(ranges, path="canvas", compile="recording")
    plain = DegradationPipeline(ranges, path="canvas")
    for seed in (0, 40, 80):
        seeds = torch.arange(4) + seed
        assert torch.equal(pipeline(hq, seeds), plain(hq, seeds))
    [graph] = graphs  # the first batch runs as it is, the second is compiled, the third fits
    names = {str(node.target) for node in graph.graph.nodes}
    assert not [name for name in names if "ndtri" in name or "lgamma" in name]
