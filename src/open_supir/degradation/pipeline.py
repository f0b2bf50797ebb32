"""DegradationPipeline: clean images and seeds in, degraded images out.

Shapes: B batch, H W image size. Images are in [-1, 1] at the interface, in [0, 1] inside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from open_supir.base.registry import register
from open_supir.base.upload import upload
from open_supir.degradation import ops
from open_supir.degradation.canvas import compiled, degrade_on_canvas
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.draw import draw_params
from open_supir.degradation.jpeg import CODECS
from open_supir.degradation.params import NO_JPEG, DegradationParams, Row


@register
class DegradationPipeline:
    """Real-ESRGAN's second-order degradation (arXiv:2107.10833), drawn per sample.

    Draw first, apply second: `draw` is pure and runs on the CPU, `apply` is a pure function on the
    images' device. A seed gives the same LQ alone, in any batch and on any worker. No global random
    state is read or written, and nothing on the host depends on the images.

    Args:
        path: "loop" degrades image by image and reads like the method; "canvas" degrades the batch
            at once in static shapes, for GPUs; "auto" takes the canvas on CUDA devices, else the
            loop, which is faster on CPUs, where the canvas works sample by sample too.
        compile: Backend of `torch.compile` for the canvas: "inductor", "cudagraphs"; None runs
            eagerly.
    """

    def __init__(
        self,
        config: DegradationConfig,
        *,
        path: Literal["auto", "loop", "canvas"] = "auto",
        compile: str | None = None,
    ) -> None:
        if path not in ("auto", "loop", "canvas"):
            raise ValueError(f"path must be auto, loop or canvas, got {path!r}")
        self.config = config
        self.path = path
        self.run = None if compile is None else compiled(compile)

    def __call__(self, hq: Tensor, seeds: Tensor) -> Tensor:
        """Degrade a batch.

        Args:
            hq: (B, 3, H, W) in [-1, 1] on any device, or uint8.
            seeds: (B,) int64 on the CPU.

        Returns:
            (B, 3, H, W) in [-1, 1], smaller where the config does not resize back; in the dtype of
            `hq`, or float32 for uint8.
        """
        return self.apply(hq, self.draw(seeds, size=(hq.shape[-2], hq.shape[-1])))

    def draw(self, seeds: Tensor, *, size: tuple[int, int]) -> DegradationParams:
        """Draw the parameters of a batch of (H, W) = `size` images from (B,) int64 seeds."""
        return draw_params(self.config, seeds, size)

    def lq_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W) of LQ made from images of (H, W) = `size`."""
        params = self.draw(torch.zeros(1, dtype=torch.int64), size=size)
        small = self.config.resize_back is None
        return (int(params.height), int(params.width)) if small else size

    @torch.no_grad()
    def apply(self, hq: Tensor, params: DegradationParams) -> Tensor:
        """Degrade (B, 3, H, W) images by `params`, in float32 even under autocast."""
        _check(hq, params)
        if len(hq) == 0:
            height, width = self.lq_size((hq.shape[-2], hq.shape[-1]))
            dtype = hq.dtype if hq.is_floating_point() else torch.float32
            return torch.empty(0, 3, height, width, dtype=dtype, device=hq.device)
        on_canvas = self.path == "canvas" or (self.path == "auto" and hq.is_cuda)
        with torch.autocast(hq.device.type, enabled=False), _full_precision():
            if on_canvas:
                unit = degrade_on_canvas(_to_unit(hq), params, self.config, self.run)
                lq = unit.mul_(2).sub_(1)
            else:
                lq = degrade_in_loop(hq, params, self.config)
        lq = lq.contiguous()
        return lq.to(hq.dtype) if hq.is_floating_point() else lq

    @torch.no_grad()
    def target(self, hq: Tensor) -> Tensor:
        """Return the training target in [-1, 1]: HQ, sharpened if the config asks for it."""
        if not self.config.sharpen:
            return hq
        parts = hq.split(1) if hq.device.type == "cpu" else [hq]  # as on the canvas
        with torch.autocast(hq.device.type, enabled=False), _full_precision():
            return torch.cat([ops.unsharp(part * 0.5 + 0.5).mul_(2).sub_(1) for part in parts])


def degrade_in_loop(hq: Tensor, params: DegradationParams, config: DegradationConfig) -> Tensor:
    """Degrade (B, 3, H, W) in [-1, 1] one by one; intermediate images have their true sizes."""
    names = ("kernels", "keys", "strengths", "tables")
    tensors = (*params.tensors(), params.jpeg_tables(config.jpeg))
    sent = upload(dict(zip(names, tensors, strict=True)), hq.device)
    kernels, keys, strengths, tables = sent.values()
    lq = []
    for i, row in enumerate(params.rows()):
        one = slice(i, i + 1)
        parts = (kernels[:, one], keys[:, one], strengths[:, one], tables[:, one])
        image = _to_unit(hq[one])  # one by one, so that an image stays in the cache
        lq.append(_degrade(image, row, *parts, config).mul_(2).sub_(1))
    return torch.cat(lq)


def _degrade(
    image: Tensor,
    p: Row,
    kernels: Tensor,
    keys: Tensor,
    strengths: Tensor,
    tables: Tensor,
    config: DegradationConfig,
) -> Tensor:
    """Degrade one image by its row of parameters.

    Args:
        image: (1, 3, H, W) in [0, 1].
        kernels: (3, 1, K, K) of the first blur, the second, and the final sinc.
        keys: (2, 1) of the noise of each stage.
        strengths: (2, 1) of that noise.
        tables: (2, 1, 2, 64) of the JPEG of each stage.
    """
    if p["identity"]:
        return _finish(image, p, config)
    if config.sharpen:
        image = ops.unsharp(image)
    image = _stage(image, p["first"], kernels[0], keys[0], strengths[0], config, first=True)
    image = _compress(image, p["first"], tables[0], config)
    image = _stage(image, p["second"], kernels[1], keys[1], strengths[1], config, first=False)
    if p["jpeg_last"]:
        image = _final_resize(image, p, kernels[2], config)
        image = _compress(image, p["second"], tables[1], config)
    else:
        image = _compress(image, p["second"], tables[1], config)
        image = _final_resize(image, p, kernels[2], config)
    return _finish(image.clamp(0, 1), p, config)


def _stage(
    image: Tensor,
    p: Row,
    kernel: Tensor,
    key: Tensor,
    strength: Tensor,
    config: DegradationConfig,
    *,
    first: bool,
) -> Tensor:
    image = _blur(image, p["kernel"], kernel)
    image = ops.resize(
        image,
        (p["height"], p["width"]),
        p["mode"],
        scale=p["scale"] if first and config.align == "scale_factor" else None,
        antialias=config.antialias,
    )
    if p["noise"] == "gaussian":
        return ops.gaussian_noise(image, strength, key, gray=p["gray"])
    if p["noise"] == "poisson":
        floor = config.fewest_levels
        return ops.poisson_noise(image, strength, key, gray=p["gray"], floor=floor)
    return image


def _compress(image: Tensor, p: Row, tables: Tensor, config: DegradationConfig) -> Tensor:
    if p["quality"] == NO_JPEG:
        return image
    _, codec = CODECS[config.jpeg]
    return codec(image, tables)


def _final_resize(image: Tensor, p: Row, kernel: Tensor, config: DegradationConfig) -> Tensor:
    image = ops.resize(image, (p["height"], p["width"]), p["mode"], antialias=config.antialias)
    return _blur(image, p["sinc"], kernel)


def _blur(image: Tensor, p: Row, kernel: Tensor) -> Tensor:
    """Blur one image with the nonzero part of its (1, K, K) kernel."""
    if p["kind"] == "none":
        return image
    margin = (kernel.shape[-1] - p["side"]) // 2
    inside = slice(margin, kernel.shape[-1] - margin)
    return ops.blur(image, kernel[:, inside, inside], separable=p["kind"] == "iso")


def _finish(image: Tensor, p: Row, config: DegradationConfig) -> Tensor:
    """Resize one image to LQ's final size, and round it."""
    if p["back"] == "none":
        size, mode = (p["height"], p["width"]), "bicubic"
    else:
        size, mode = (p["hq_height"], p["hq_width"]), p["back"]
    image = ops.resize(image, size, mode, antialias=config.antialias_back)
    return ops.to_levels(image).div_(255) if config.round else image.clamp(0, 1)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep matrix products and convolutions in float32: TF32 changes JPEG's rounding."""
    backends = torch.backends
    settings = (
        backends.cuda.matmul,
        backends.cudnn.conv,  # type: ignore[attr-defined]
        backends.mkldnn.matmul,  # type: ignore[attr-defined]
        backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _check(hq: Tensor, params: DegradationParams) -> None:
    """Raise ValueError if the parameters do not fit the batch."""
    if hq.ndim != 4 or hq.shape[1] not in (1, 3):
        raise ValueError(f"hq must be (B, 3, H, W) or (B, 1, H, W), got {tuple(hq.shape)}")
    if len(hq) != len(params):
        raise ValueError(f"{len(hq)} images, but parameters for {len(params)}")
    sizes = {
        (row[0], row[1]) for row in torch.stack([params.hq_height, params.hq_width], 1).tolist()
    }
    if sizes - {tuple(hq.shape[-2:])}:
        raise ValueError(f"images of {tuple(hq.shape[-2:])}, but parameters drawn for {sizes}")
    if not (hq.dtype == torch.uint8 or hq.is_floating_point()):
        raise ValueError(f"hq must be floating point in [-1, 1] or uint8, got {hq.dtype}")


def _to_unit(hq: Tensor) -> Tensor:
    """Bring a batch to (B, 3, H, W) float32 in [0, 1]; NaN becomes mid grey."""
    if hq.dtype == torch.uint8:
        unit = hq.float() / 255
    else:
        unit = (hq.float() * 0.5).add_(0.5).nan_to_num_(0.5, 1.0, 0.0).clamp_(0, 1)
    return unit.expand(-1, 3, -1, -1).contiguous()
