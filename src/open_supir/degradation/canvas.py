"""The static-shape path: every intermediate image occupies the corner of a canvas.

GPUs degrade a batch at once, CPUs sample by sample (see `_samples_at_once`).

Sizes differ from sample to sample, shapes do not: resizing is two gathers with per-sample tables of
indices and weights, blurring mirrors each sample at its own borders through an index map, and rows
past an image's end repeat its last row, the padding that JPEG needs. So nothing recompiles,
allocations repeat, a CUDA graph can replay the work, and the number of kernel launches does not
grow with the batch.

Shapes: B batch, O canvas side, T taps per output pixel, K kernel side. Images are in [0, 1].
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.upload import upload
from open_supir.degradation import ops
from open_supir.degradation.canvas_tables import CanvasLayout, Tables, make_layout, make_tables
from open_supir.degradation.config import MAX_KERNEL, DegradationConfig, StageConfig
from open_supir.degradation.counter_rng import normals, pixel_bits
from open_supir.degradation.jpeg import CODECS
from open_supir.degradation.params import BACKS, DegradationParams

CanvasFunction = Callable[[Tensor, Tables, DegradationConfig, CanvasLayout], Tensor]
_LARGEST_BATCH = 10_000_000  # canvas pixels degraded at once


def degrade_on_canvas(
    image: Tensor,
    params: DegradationParams,
    config: DegradationConfig,
    run: CanvasFunction | None = None,
) -> Tensor:
    """Degrade (B, 3, H, W) in [0, 1]; equal to the loop up to rounding.

    `run` may be a function returned by `compiled`.
    """
    run = run or run_eagerly
    layout = make_layout(config, (image.shape[-2], image.shape[-1]))
    tables = upload(make_tables(params, config, layout), image.device)
    count = _samples_at_once(image.device, layout)
    if len(image) <= count:
        return run(image, tables, config, layout)
    parts = [slice(start, start + count) for start in range(0, len(image), count)]
    lq = [
        run(image[part], {name: _select(tables, name, part) for name in tables}, config, layout)
        for part in parts
    ]
    return torch.cat(lq)


def _samples_at_once(device: torch.device, layout: CanvasLayout) -> int:
    """Return how many samples are degraded together; larger batches are split.

    CPUs take one, so that a sample gets the same arithmetic in every batch. There, the last bits of
    batched FFTs, of matrix products and at the ends of vectorised loops depend on the batch; where
    such a bit decides the rounding of a JPEG coefficient, a whole block changes.
    """
    return 1 if device.type == "cpu" else max(1, _LARGEST_BATCH // math.prod(layout.first))


def _select(tables: Tables, name: str, samples: slice) -> Tensor:
    value = tables[name]
    return value[:, samples] if name in ("kernels", "jpeg") else value[samples]


def compiled(backend: str) -> CanvasFunction:
    """Return `run_eagerly` compiled by a backend of `torch.compile`, one graph per shape.

    The first batch of a shape runs eagerly and fills the cached tables, so that the graph finds
    them; the second is compiled.

    Raises:
        ValueError: The backend is unknown.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"no compiler backend {backend!r}; known: {', '.join(known)}")
    graph = torch.compile(run_eagerly, backend=backend, fullgraph=True, dynamic=False)
    seen = set()

    def run(
        image: Tensor, tables: Tables, config: DegradationConfig, layout: CanvasLayout
    ) -> Tensor:
        shape = (image.shape, image.device, config, layout)
        if shape in seen:
            return graph(image, tables, config, layout).clone()  # a CUDA graph owns its output
        seen.add(shape)
        return run_eagerly(image, tables, config, layout)

    return run


def run_eagerly(
    image: Tensor, tables: Tables, config: DegradationConfig, layout: CanvasLayout
) -> Tensor:
    """Degrade (B, 3, H, W) on its device; from here on, only tensor operations in static shapes."""
    hq = image
    if config.sharpen:
        image = ops.unsharp(image)
    if config.first.prob > 0 and config.first.blur.prob > 0:
        padded = ops.reflect_pad(image, MAX_KERNEL // 2)
        image = ops.fft_filter(padded, tables["kernels"][0])
    image = _resize(image, tables, "first", config)
    image = _noise(image, tables, "first", config.first, config.fewest_levels)
    image = _compress(image, tables, "first", "first", config)
    if config.second.prob > 0 and config.second.blur.prob > 0:
        padded = ops.take(ops.take(image, tables["first.y.mirror"], 2), tables["first.x.mirror"], 3)
        image = ops.fft_filter(padded, tables["kernels"][1])
    image = _resize(image, tables, "second", config)
    image = _noise(image, tables, "second", config.second, config.fewest_levels)
    image = _reduce_and_compress(image, tables, config, layout)
    return _finish(image.clamp(0, 1), hq, tables, config, layout)


def _reduce_and_compress(
    image: Tensor, tables: Tables, config: DegradationConfig, layout: CanvasLayout
) -> Tensor:
    """Apply final resize with sinc filter, and second JPEG, in each sample's own order.

    Where both orders occur, everything is reduced twice and compressed once, which is faster than
    the reverse.
    """
    height, width = layout.small
    if config.second.jpeg_prob == 0:
        return _reduce(image, tables, config)
    if config.order_prob == 0:
        return _reduce(_compress(image, tables, "second", "last", config), tables, config)
    reduced = _reduce(image, tables, config)
    below, right = layout.second[0] - height, layout.second[1] - width
    reduced = F.pad(reduced, (0, right, 0, below), mode="replicate")
    last = _wide(tables["jpeg_last"])
    image = torch.where(last, reduced, image)
    image = _compress(image, tables, "second", "last", config)
    if config.order_prob == 1:
        return image[..., :height, :width]
    return torch.where(last, image[..., :height, :width], _reduce(image, tables, config))


def _reduce(image: Tensor, tables: Tables, config: DegradationConfig) -> Tensor:
    image = _resize(image, tables, "small", config)
    if config.sinc_prob == 0:
        return image
    return ops.fft_filter(ops.reflect_pad(image, MAX_KERNEL // 2), tables["kernels"][2])


def _finish(
    image: Tensor, hq: Tensor, tables: Tables, config: DegradationConfig, layout: CanvasLayout
) -> Tensor:
    """Bring LQ to its final size, pass untouched samples through, and round."""
    if config.resize_back is not None:
        image = _enlarge(image, tables, config, layout)
    if config.identity_prob > 0:
        untouched = hq
        if config.resize_back is None and config.antialias == "pillow":
            untouched = _resize(hq, tables, "final", config)
        elif config.resize_back is None:
            untouched = ops.resize(hq, layout.small, "bicubic")
        image = torch.where(_wide(tables["identity"]), untouched, image)
    return ops.to_levels(image).div_(255) if config.round else image.clamp(0, 1)


def _enlarge(
    image: Tensor, tables: Tables, config: DegradationConfig, layout: CanvasLayout
) -> Tensor:
    if config.antialias == "pillow":
        return _resize(image, tables, "final", config)
    large = ops.resize(image, layout.hq, "bicubic")
    if config.resize_back == "random":
        for mode in ("area", "bilinear"):
            other = ops.resize(image, layout.hq, mode)
            large = torch.where(_wide(tables["back"] == BACKS.index(mode)), other, large)
    return large


def _compress(
    image: Tensor, tables: Tables, stage: str, canvas: str, config: DegradationConfig
) -> Tensor:
    """Compress with the tables of a stage; the image is on the named canvas."""
    prob = getattr(config, stage).jpeg_prob
    if prob == 0:
        return image
    _, codec = CODECS[config.jpeg]
    ends = (tables[f"{canvas}.y.end"], tables[f"{canvas}.x.end"])
    coded = codec(image, tables["jpeg"][("first", "second").index(stage)], ends)
    return coded if prob == 1 else torch.where(_wide(tables[f"{stage}.raw"]), image, coded)


def _noise(image: Tensor, tables: Tables, name: str, ranges: StageConfig, floor: int) -> Tensor:
    """Add each sample's kind of noise; the other kind has strength 0."""
    if ranges.prob * ranges.noise_prob == 0:
        return image
    bits = pixel_bits(tables[f"{name}.rows"], tables[f"{name}.columns"])
    gray = tables[f"{name}.gray"]
    noisy = image
    if ranges.gaussian_prob > 0:
        normal = normals(bits, 3)
        normal = torch.where(_wide(gray), normal[:, :1], normal)
        noisy = torch.addcmul(noisy, normal, _wide(tables[f"{name}.gaussian"]))
    if ranges.gaussian_prob < 1:
        base = torch.where(_wide(gray), ops.luminance(image), image)
        shot = ops.shot_noise(base, bits, floor=floor, shared=gray)
        noisy = torch.addcmul(noisy, shot, _wide(tables[f"{name}.poisson"]))
    noisy = noisy.clamp(0, 1)
    if ranges.prob * ranges.noise_prob == 1:
        return noisy
    return torch.where(_wide(tables[f"{name}.clean"]), image, noisy)


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]


def _resize(image: Tensor, tables: Tables, name: str, config: DegradationConfig) -> Tensor:
    """Resize every sample of (B, C, H, W) with its own tables, columns first."""
    for axis, dim in (("x", 3), ("y", 2)):
        key = f"{name}.{axis}"
        index, weight = tables[f"{key}.index"], tables[f"{key}.weight"]
        if config.antialias == "pillow":
            kept = ops.weigh(image, index, weight.float(), dim)  # area, and sides that stay
            image = ops.pillow_pass(image, index, weight, dim)
            image = torch.where(_wide(tables[f"{key}.kept"]), kept, image)
        else:
            image = ops.weigh(image, index, weight, dim)
    return image
