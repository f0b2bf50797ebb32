"""A plain reimplementation of the structure of Real-ESRGAN's training code, for comparison.

Written for this comparison from the description of the method: one draw of scale, mode, noise kind
and order for a whole batch, dense kernels, distinct levels by `torch.unique`, a branch per element
for JPEG quality. No code was copied. Its blur kernels are given at no cost, whereas the original's
data loader makes them, and there is no pool of old pairs.
"""

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.degradation.jpeg import _CHROMA, _LUMA
from open_supir.degradation.params import DegradationParams

MODES = ("area", "bilinear", "bicubic")
SMALLEST_SIDE = 128  # below, its padding of 10 exceeds intermediate images, as in the original
Draws = dict[str, Any]


def draw_batch(params: DegradationParams, rng: random.Random) -> Draws:
    """One draw for a whole batch where Real-ESRGAN makes one; per-sample values from `params`."""

    def scale(probabilities: tuple[float, float, float], low: float, high: float) -> float:
        direction = rng.choices(("up", "down", "keep"), probabilities)[0]
        return {"up": rng.uniform(1, high), "down": rng.uniform(low, 1), "keep": 1.0}[direction]

    def noise(sigma: tuple[float, float], poisson: tuple[float, float]) -> Draws:
        kind = rng.choice(("gaussian", "poisson"))
        bounds = sigma if kind == "gaussian" else poisson
        strength = torch.empty(len(params)).uniform_(*bounds)
        return {"kind": kind, "strength": strength, "gray": torch.rand(len(params)) < 0.4}

    kernels, _, _ = params.tensors()
    return {
        "kernels": kernels,
        "first": {
            "scale": scale((0.2, 0.7, 0.1), 0.15, 1.5),
            "mode": rng.choice(MODES),
            "quality": torch.empty(len(params)).uniform_(30, 95),
            **noise((1, 30), (0.05, 3)),
        },
        "second": {
            "blur": rng.random() < 0.8,
            "scale": scale((0.3, 0.4, 0.3), 0.3, 1.2),
            "mode": rng.choice(MODES),
            "quality": torch.empty(len(params)).uniform_(30, 95),
            **noise((1, 25), (0.05, 2.5)),
        },
        "last_mode": rng.choice(MODES),
        "jpeg_last": rng.random() < 0.5,
    }


def reference(image: Tensor, draws: Draws, *, usm: bool) -> Tensor:
    """Degrade (B, 3, H, W) in [0, 1] to (B, 3, H // 4, W // 4)."""
    height, width = image.shape[-2:]
    if usm:
        image = sharpen(image)
    first, second, kernels = draws["first"], draws["second"], draws["kernels"]
    x = dense_blur(image, kernels[0])
    x = F.interpolate(x, scale_factor=first["scale"], mode=first["mode"])
    x = dense_jpeg(add_noise(x, first), first["quality"])
    if second["blur"]:
        x = dense_blur(x, kernels[1])
    size = (int(height / 4 * second["scale"]), int(width / 4 * second["scale"]))
    x = add_noise(F.interpolate(x, size=size, mode=second["mode"]), second)
    small = (height // 4, width // 4)
    if draws["jpeg_last"]:
        x = dense_blur(F.interpolate(x, size=small, mode=draws["last_mode"]), kernels[2])
        x = dense_jpeg(x, second["quality"])
    else:
        x = dense_jpeg(x, second["quality"])
        x = dense_blur(F.interpolate(x, size=small, mode=draws["last_mode"]), kernels[2])
    result = (x * 255).round().clamp(0, 255) / 255
    if usm:
        sharpen(image)  # the training target is sharpened again, after the pool of pairs
    return result


def dense_blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Filter each image by its own dense kernel: one grouped convolution."""
    batch, channels, height, width = image.shape
    pad = kernel.shape[-1] // 2
    padded = F.pad(image, (pad, pad, pad, pad), mode="reflect")
    weight = kernel.repeat_interleave(channels, 0)[:, None]
    flat = padded.reshape(1, batch * channels, height + 2 * pad, width + 2 * pad)
    return F.conv2d(flat, weight, groups=batch * channels).view(image.shape)


def sharpen(image: Tensor) -> Tensor:
    """Sharpen by two dense 51 x 51 Gaussian blurs."""
    taps = torch.exp(-0.5 * (torch.arange(51.0) - 25).square() / 8.0**2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2)[None, None]

    def smooth(x: Tensor) -> Tensor:
        padded = F.pad(x, (25, 25, 25, 25), mode="reflect")
        return F.conv2d(padded.flatten(0, 1)[:, None], kernel).view(x.shape)

    residual = image - smooth(image)
    soft = smooth((residual.abs() * 255 > 10).float())
    return soft * (image + 0.5 * residual).clamp(0, 1) + (1 - soft) * image


def add_noise(image: Tensor, draws: Draws) -> Tensor:
    strength = draws["strength"].view(-1, 1, 1, 1)
    gray = draws["gray"].float().view(-1, 1, 1, 1)
    if draws["kind"] == "gaussian":
        noise = torch.randn(image.shape) * strength / 255
        if gray.sum() > 0:  # one field for all the batch
            shared = torch.randn(image.shape[-2:]) * strength / 255
            noise = noise * (1 - gray) + shared * gray
        return (image + noise).clamp(0, 1)
    noise = shot_noise(image)
    if gray.sum() > 0:
        weights = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
        noise = noise * (1 - gray) + shot_noise((image * weights).sum(1, keepdim=True)) * gray
    return (image + noise * strength).clamp(0, 1)


def shot_noise(image: Tensor) -> Tensor:
    rounded = (image * 255).round().clamp(0, 255) / 255
    counts = [len(torch.unique(one)) for one in rounded]
    levels = torch.tensor([2.0 ** math.ceil(math.log2(count)) for count in counts])
    levels = levels.view(-1, 1, 1, 1)
    return torch.poisson(rounded * levels) / levels - rounded


def dense_jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Compress without libjpeg's rounding: transposed luma table, zero padding, 8^4 basis."""
    height, width = image.shape[-2:]
    x = F.pad(image.clamp(0, 1), (0, -width % 16, 0, -height % 16)).permute(0, 2, 3, 1) * 255
    matrix = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    ycc = torch.tensordot(x, matrix.T, dims=1)
    planes = [ycc[..., 0], *F.avg_pool2d(ycc[..., 1:].permute(0, 3, 1, 2) + 128, 2).unbind(1)]
    factors = []
    for q in quality:
        factors.append(50 / float(q) if q < 50 else 2 - float(q) / 50)
    factor = torch.tensor(factors).view(-1, 1, 1, 1)
    tables = (torch.tensor(_LUMA).T, torch.tensor(_CHROMA), torch.tensor(_CHROMA))
    n = torch.arange(8.0)
    basis = torch.cos((2 * n[:, None] + 1) * n * math.pi / 16)
    basis = basis * torch.where(n == 0, math.sqrt(0.125), 0.5)
    cube = torch.einsum("xu,yv->xyuv", basis, basis)
    decoded = []
    for plane, table in zip(planes, tables, strict=True):
        rows, columns = plane.shape[1] // 8, plane.shape[2] // 8
        blocks = plane.view(-1, rows, 8, columns, 8).transpose(2, 3).reshape(len(plane), -1, 8, 8)
        steps = table * factor
        coefficients = torch.tensordot(blocks - 128, cube, dims=2)
        coefficients = (coefficients / steps).round() * steps
        back = torch.tensordot(coefficients, cube.permute(2, 3, 0, 1), dims=2) + 128
        back = back.view(-1, rows, columns, 8, 8).transpose(2, 3)
        decoded.append(back.reshape(len(plane), rows * 8, columns * 8))
    y, cb, cr = (
        decoded[0],
        *(c.repeat_interleave(2, 1).repeat_interleave(2, 2) - 128 for c in decoded[1:]),
    )
    rgb = torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 1)
    return rgb.clamp(0, 255)[..., :height, :width] / 255
