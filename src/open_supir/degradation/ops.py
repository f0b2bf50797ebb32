"""Single degradations: functions of an image and per-sample parameters. JPEG is in jpeg.py.

Shapes: B batch, H W image size. Images are float32 in [0, 1], though blur and bicubic resizing may
overshoot.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from kornia.filters import filter2d, get_gaussian_kernel1d
from torch import Tensor

from open_supir.degradation.cached import cached
from open_supir.degradation.config import Antialias
from open_supir.degradation.counter_rng import (
    column_counters,
    normals,
    pixel_bits,
    poisson_counts,
    row_counters,
)
from open_supir.degradation.taps import pillow_table


def reflect_index(side: int, pad: int, device: torch.device) -> Tensor:
    """Return (side + 2 pad,) indices that mirror an axis, ends not repeated, for any pad."""
    period = max(2 * (side - 1), 1)
    position = torch.arange(-pad, side + pad, device=device).abs() % period
    return torch.where(position >= side, period - position, position) if side > 1 else position * 0


def reflect_pad(image: Tensor, pad: int) -> Tensor:
    """Mirror an image at its borders; unlike torch's own padding, `pad` may exceed the image."""
    height, width = image.shape[-2:]
    if pad < min(height, width):
        return F.pad(image, (pad, pad, pad, pad), mode="reflect")
    image = image.index_select(2, reflect_index(height, pad, image.device))
    return image.index_select(3, reflect_index(width, pad, image.device))


_GATHER_LIMIT = 1 << 26  # numbers gathered at once; larger gathers are split
LARGEST_STENCIL = 13  # larger windows are filtered by FFT


@lru_cache(maxsize=4096)
def fast_length(length: int) -> int:
    """Return the smallest even number >= length whose prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def blur(image: Tensor, kernel: Tensor, *, separable: bool = False) -> Tensor:
    """Filter each image with its own point-symmetric kernel, mirrored at the borders.

    CPUs use a stencil for small windows and separable kernels, else a real FFT. Milliseconds per
    512 x 512 image on one thread at windows 7 / 13 / 21: separable stencil 1.4 / 1.8 / 2.4, stencil
    1.3 / 2.7 / 9.0, FFT 3.9 / 3.6 / 4.0, Kornia's `filter2d` 5.4 / 10 / 23; at 21, its
    `filter2d_separable` takes 9.6 and its `fft_conv`, which does not look for lengths with small
    factors, 12. Other devices use `filter2d`, since each new size costs an FFT plan there. Results
    differ by about 1e-6.

    Args:
        image: (B, 3, H, W).
        kernel: (B, k, k), k odd.
        separable: The kernels are products of their marginals.
    """
    padded = reflect_pad(image, kernel.shape[-1] // 2)
    if image.device.type != "cpu":
        return filter2d(padded, kernel, padding="valid")
    if separable:
        return stencil(padded, kernel.sum(1, keepdim=True), kernel.sum(2, keepdim=True))
    if kernel.shape[-1] <= LARGEST_STENCIL:
        return stencil(padded, kernel)
    return fft_filter(padded, kernel)


def stencil(padded: Tensor, *kernels: Tensor) -> Tensor:
    """Convolve (B, 3, H + edge, W + edge) with (B, p, q) kernels in turn to (B, 3, H, W).

    Depthwise convolution on CPUs works on several channels at once, but an image has only three:
    so it is cut into four horizontal strips, overlapping by the edge, that become channels.
    """
    batch, channels, height, _ = padded.shape
    edge = sum(kernel.shape[1] - 1 for kernel in kernels)
    count = 4 if height - edge >= 4 * edge else 1
    rows = -(-(height - edge) // count)
    if rows * count + edge > height:  # padding by 0 would still copy the image
        padded = F.pad(padded, (0, 0, 0, rows * count + edge - height))
    strips = padded.unfold(2, rows + edge, rows).movedim(-1, 3)  # (B, 3, count, rows + edge, W)
    x = strips.reshape(1, -1, rows + edge, padded.shape[-1])
    x = x.contiguous(memory_format=torch.channels_last)
    for kernel in kernels:
        weight = kernel.repeat_interleave(channels * count, 0)[:, None]
        x = F.conv2d(x, weight, groups=len(weight))
    return x.contiguous().view(batch, channels, count * rows, -1)[:, :, : height - edge]


def fft_filter(padded: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (B, C, H + k - 1, W + k - 1) with (B, k, k) kernels to (B, C, H, W)."""
    height, width = _fast_size(padded)
    # Most of the kernel's rows are padding, so the first pass skips them.
    response = torch.fft.fft(torch.fft.rfft(kernel, n=width), n=height, dim=-2)
    return _filter(padded, response[:, None], kernel.shape[-1] - 1)


def _fast_size(padded: Tensor) -> list[int]:
    return [fast_length(side) for side in padded.shape[-2:]]


def _filter(padded: Tensor, response: Tensor, edge: int) -> Tensor:
    """Multiply spectra, and cut off `edge` rows and columns that wrapped around."""
    size = _fast_size(padded)
    spectrum = torch.fft.rfft2(padded, s=size).mul_(response)
    return torch.fft.irfft2(spectrum, s=size)[..., edge : padded.shape[-2], edge : padded.shape[-1]]


def resize(
    image: Tensor,
    size: tuple[int, int],
    mode: str,
    *,
    scale: float | None = None,
    antialias: Antialias = False,
) -> Tensor:
    """Resize to (H, W) = `size`; an image that already has this size is returned unchanged.

    Borders are aligned, so content stays in place. With `scale`, coordinates step by 1 / scale from
    the top left corner instead, as in `F.interpolate(scale_factor=...)`: at 0.15, the far side of a
    512 image drifts by 6 pixels. (Kornia's resize is the same call, but antialiases by a Gaussian
    blur before it instead of torch's widened filter.)

    Args:
        mode: "area", "bilinear" or "bicubic".
        scale: Drift like Real-ESRGAN's first resize; `size` must be floor(side * scale).
        antialias: Widen bilinear and bicubic filters when scaling down; "pillow" equals
            Pillow's resizing of 8-bit images to the bit.
    """
    here = tuple(image.shape[-2:])
    if antialias == "pillow" and mode != "area":
        return _resize_as_pillow(image, size, mode)
    widen = antialias and mode != "area"
    if scale is not None and mode != "area" and size == tuple(int(side * scale) for side in here):
        return F.interpolate(image, scale_factor=scale, mode=mode, antialias=bool(widen))
    if here == size:
        return image
    return F.interpolate(image, size=size, mode=mode, antialias=bool(widen))


def _resize_as_pillow(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    for axis, side in ((3, size[1]), (2, size[0])):  # columns first, as there
        if image.shape[axis] != side:
            tables = (
                table.to(image.device, non_blocking=True).expand(len(image), -1, -1)
                for table in pillow_table(image.shape[axis], side, mode)
            )
            image = pillow_pass(image, *tables, axis)
    return image


def pillow_pass(image: Tensor, index: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Resize one axis of [0, 1] to multiples of 1/255; of 8-bit values to the bit as Pillow.

    Args:
        weight: (B, O, T) multiples of 2^-22, so that sums are exact in float64.
    """
    levels = image.double().mul_(255 * 256).round_().div_(256)  # finer parts of a level are noise
    summed = weigh(levels, index, weight, axis)
    return summed.add_(0.5).floor_().clamp_(0, 255).float().div_(255)


def weigh(image: Tensor, index: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Sum (B, C, H, W) along an axis by each sample's (B, O, T) indices and weights."""
    per_sample = image[0].numel() // image.shape[axis] * index[0].numel()
    part = max(_GATHER_LIMIT // per_sample, 1)
    parts = []
    for pixels, where, by in zip(*(x.split(part) for x in (image, index, weight)), strict=True):
        tapped = take(pixels, where.flatten(1), axis).unflatten(axis, tuple(where.shape[1:]))
        by = by[:, None, :, :, None] if axis == 2 else by[:, None, None]
        parts.append((tapped * by).sum(axis + 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gaussian_noise(image: Tensor, sigma: Tensor, keys: Tensor, *, gray: bool = False) -> Tensor:
    """Add normal noise and clip to [0, 1].

    Kornia's `RandomGaussianNoise` has one deviation per batch, no grey noise and no clipping.

    Args:
        sigma: (B,) standard deviation in [0, 255] units.
        keys: (B,) int64 on the image's device; pixel (y, x) of one key always gets the same noise.
        gray: Use the same noise in all channels.
    """
    noise = normals(noise_bits(image, keys), 1 if gray else 3)
    return torch.addcmul(image, noise, (sigma / 255)[:, None, None, None]).clamp_(0, 1)


def poisson_noise(
    image: Tensor, strength: Tensor, keys: Tensor, *, gray: bool = False, floor: int = 64
) -> Tensor:
    """Add shot noise of standard deviation strength * sqrt(value / levels) and clip to [0, 1].

    Args:
        strength: (B,) factor on the noise.
        keys: (B,) int64, as in `gaussian_noise`.
        gray: Use the luminance's noise in all channels.
    """
    base = luminance(image) if gray else image
    noise = shot_noise(base, noise_bits(image, keys), floor=floor)
    return torch.addcmul(image, noise, strength[:, None, None, None]).clamp_(0, 1)


def noise_bits(image: Tensor, keys: Tensor) -> Tensor:
    """Return (B, H, W) int64 random bits of each pixel."""
    y, x = (torch.arange(side, device=image.device) for side in image.shape[-2:])
    return pixel_bits(row_counters(keys, y), column_counters(x))


def shot_noise(image: Tensor, bits: Tensor, *, floor: int, shared: Tensor | None = None) -> Tensor:
    """Return Poisson(value * levels) / levels - value, for values rounded to multiples of 1/255.

    `levels` is the number of distinct values rounded up to a power of two, counted with presence
    flags: `torch.unique` and `bincount` would wait for the device. Kornia has no such noise.

    Args:
        image: (B, C, H, W).
        bits: (B, H, W) int64 random bits.
        floor: Fewest levels to assume: 256 counts nothing; 1 is Real-ESRGAN's behaviour, where
            flat images drown in noise.
        shared: (B,) bool; where True all channels use the same bits.
    """
    level = to_levels(image)
    log2_levels = count_levels(level, floor)
    counts = poisson_counts(bits, level.int(), log2_levels, shared)
    return counts.mul_((0.5**log2_levels)[:, None, None, None]).sub_(level, alpha=1 / 255)


def luminance(image: Tensor) -> Tensor:
    """Return (B, 1, H, W), weighted as in torchvision's rgb_to_grayscale."""
    red, green, blue = image.split(1, 1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def take(image: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather rows (axis 2) or columns (axis 3) of (B, C, H, W) by each sample's (B, N) indices."""
    shape = list(image.shape)
    shape[axis] = index.shape[1]
    view = index[:, None, :, None] if axis == 2 else index[:, None, None, :]
    return image.gather(axis, view.expand(shape))


def to_levels(image: Tensor) -> Tensor:
    """Round [0, 1] to 0..255, still float32; fractions from .4995 round up.

    Averages of 8-bit values often end in .5, where rounding would otherwise depend on the last bit
    of a sum, and so on the codec and device.
    """
    return image.mul(255).add_(0.5005).floor_().clamp_(0, 255)


def count_levels(level: Tensor, floor: int) -> Tensor:
    """Return (B,) int64: log2 of the number of distinct values, at least `floor`, rounded up."""
    if floor == 256:
        return torch.full((len(level),), 8, device=level.device)
    present = torch.zeros(len(level), 256, dtype=torch.int64, device=level.device)
    one = torch.ones(1, 1, dtype=torch.int64, device=level.device)
    index = level.flatten(1).long()
    present.scatter_(1, index, one.expand_as(index))  # a scalar `one` would take twice as long
    number = present.sum(1).clamp_min(floor)
    return (number[:, None] > _powers_of_two(level.device)).sum(1)


@cached
def _powers_of_two(device: torch.device) -> Tensor:
    """Return 1, 2, 4 .. 128."""
    return (2 ** torch.arange(8)).to(device, non_blocking=True)


@cached
def _sharpening_taps(device: torch.device) -> Tensor:
    """Return a Gaussian of sigma 8 on the device, where a CUDA graph needs it."""
    return get_gaussian_kernel1d(51, 8.0)[0].to(device, non_blocking=True)


def unsharp(image: Tensor) -> Tensor:
    """Sharpen like Real-ESRGAN's USM: add half of what a sigma 8 blur removes, where it is large.

    The two 51 x 51 blurs use FFTs, which match the dense kernel to 3e-4 (a pixel may fall on the
    other side of the threshold) in a few hundredths of its time. Kornia's `unsharp_mask` has
    neither threshold nor soft mask; its PSNR against this is 28 dB on a photograph.
    """
    padded = reflect_pad(image, 25)
    height, width = _fast_size(padded)
    taps = _sharpening_taps(image.device)
    response = torch.fft.fft(taps, n=height)[:, None] * torch.fft.rfft(taps, n=width)
    residual = image - _filter(padded, response, 50)
    mask = (residual.abs() > 10 / 255).float()
    mask = _filter(reflect_pad(mask, 25), response, 50)
    sharp = residual.mul_(0.5).add_(image).clamp_(0, 1)
    return torch.lerp(image, sharp, mask)
