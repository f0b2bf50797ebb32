"""Film grain: noise like the input's, for a result that has none.

The noise is measured in the flattest parts of the input: its strength by lightness, how its
channels belong together, and its spectrum. New noise of that kind is then drawn, since the input's
own residue would bring its details and its JPEG blocks along.

Shapes: H W image size, N patches, S patch side, K kernel side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from open_supir.base.images import resize

PATCH = 32  # S
LEVELS = 8  # of lightness, each with its own strength
FLATTEST = 0.1  # share of the patches of a level that count as flat
REACH = 7  # pixels up to which neighbours belong together; K = 2 * REACH + 1
HIGHEST = 2.0  # times the usual strength: what a level has above this is texture
RANGE = (0.02, 0.98)  # of mean lightness; clipped noise is too weak


@dataclass(frozen=True)
class Grain:
    """The noise of an image, as measured.

    Attributes:
        kernel: (K, K) that makes it of white noise; its norm is 1.
        mixing: (3, 3) that makes its channels of independent ones; the mean variance stays 1.
        strength: (LEVELS,) standard deviation by lightness, for images in [0, 1].
    """

    kernel: Tensor
    mixing: Tensor
    strength: Tensor


def measure_grain(image: Tensor) -> Grain | None:
    """Measure the noise of (3, H, W) in [0, 1]; None if the image has no room for patches."""
    if min(image.shape[-2:]) < PATCH:
        return None
    cut = image.float().cpu().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    patches = rearrange(cut, "c y x h w -> (y x) c h w")
    light, noise = patches.mean((1, 2, 3)), _without_trend(patches)
    variance = noise.square().mean((1, 2, 3))
    usable = (light >= RANGE[0]) & (light <= RANGE[1])
    if not usable.any():
        return None
    level = (light * LEVELS).long().clamp(0, LEVELS - 1)
    flat, found = torch.zeros_like(usable), {}
    for number in range(LEVELS):
        inside = torch.nonzero(usable & (level == number))[:, 0]
        if len(inside):
            count = max(1, round(FLATTEST * len(inside)))
            chosen = inside[variance[inside].argsort()[:count]]
            flat[chosen] = True
            found[number] = variance[chosen].mean().sqrt()
    usual = variance[flat].median().sqrt()
    nearest = [min(found, key=lambda known: abs(known - number)) for number in range(LEVELS)]
    strength = torch.stack([found[number] for number in nearest]).clamp_max(HIGHEST * usual)
    return Grain(_kernel(noise[flat]), _mixing(noise[flat]), strength)


def draw_grain(grain: Grain, image: Tensor, seed: int) -> Tensor:
    """Return noise (3, H, W) for an image (3, H, W) in [0, 1], which gives the lightness."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(3, *image.shape[-2:], generator=generator)
    field = F.pad(field, (REACH,) * 4, mode="circular")
    field = F.conv2d(field[:, None], grain.kernel[None, None])[:, 0]
    field = torch.einsum("ij,jhw->ihw", grain.mixing, field)
    at = image.float().cpu().mean(0).mul(LEVELS).sub(0.5).clamp(0, LEVELS - 1)
    below = at.long().clamp_max(LEVELS - 2)
    weak, strong = grain.strength[below], grain.strength[below + 1]
    return field * torch.lerp(weak, strong, at - below)


def with_grain(restored: Tensor, image: Tensor, seed: int) -> Tensor:
    """Add noise like that of `image` (1, 3, H, W) to a result (1, 3, h, w); both in [0, 1].

    It is drawn at the size of the input, and grows with the picture.
    """
    grain = measure_grain(image[0])
    if grain is None:
        return restored
    field = draw_grain(grain, image[0], seed)
    large = resize(field[None], (restored.shape[-2], restored.shape[-1]))
    if large.numel() > field.numel():  # interpolating weakens it
        large *= field.std() / large.std()
    return (restored + large.to(restored)).clamp_(0, 1)


def _without_trend(patches: Tensor) -> Tensor:
    """Subtract the quadratic surface that fits each channel of (N, 3, S, S) best."""
    axis = torch.linspace(-1, 1, PATCH)
    y, x = axis[:, None].expand(PATCH, PATCH), axis.expand(PATCH, PATCH)
    surfaces = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).flatten(1)
    basis = torch.linalg.qr(surfaces.T)[0]  # (S * S, 6)
    flat = patches.flatten(2)
    return (flat - flat @ basis @ basis.T).view_as(patches)


def _kernel(noise: Tensor) -> Tensor:
    """Return the (K, K) filter whose white noise has the mean spectrum of (N, 3, S, S)."""
    scaled = noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8)
    power = torch.fft.fft2(scaled).abs().square().mean((0, 1))
    kernel = torch.fft.fftshift(torch.fft.ifft2(power.sqrt()).real)
    middle = slice(PATCH // 2 - REACH, PATCH // 2 + REACH + 1)
    kernel = kernel[middle, middle]
    return kernel / kernel.norm().clamp_min(1e-8)


def _mixing(noise: Tensor) -> Tensor:
    """Return the square root of the channels' covariance in (N, 3, S, S), of mean variance 1."""
    channels = rearrange(noise, "n c h w -> c (n h w)")
    covariance = channels @ channels.T
    covariance = covariance * 3 / covariance.trace().clamp_min(1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
