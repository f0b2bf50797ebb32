"""What a degradation leaves in an image: noise, spectrum, blocks, chroma, gradients.

Shapes: B batch, H W image size, P patches. Images are in [0, 1] at the interface and in levels,
[0, 255], inside. Everything is vectorised; nothing depends on another image of the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 64  # pixels a side; below, too few flat patches are left
NAMES = (
    "noise",  # log2 of the standard deviation of luma noise in flat patches, in levels
    "colour_noise",  # the same of Cb and Cr
    "noise_correlation",  # between red, green and blue: 1 if the noise is grey
    "noise_by_brightness",  # d(variance) / d(brightness), both over their means: Poisson 1, else 0
    "slope",  # of the power spectrum in log-log, from 0.03 to 0.2 cycles per pixel
    "cutoff",  # cycles per pixel below which 95 % of the gradients' power lies
    "blockiness",  # log2 of steps across the borders of 8 x 8 blocks over steps elsewhere
    "chroma",  # log2 of the standard deviation of Cb and Cr, in levels
    "gradient",  # log2 of the median gradient of luma, in levels per pixel
    "edges",  # log2 of the 99 % quantile of gradients over the median
)
# Boundaries of the spectrum's bands, in cycles per pixel.
BANDS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.26, 0.32, 0.38, 0.44, 0.5)
_PATCH = 8
_FLAT = 0.25  # share of the patches in which noise is measured
_FLATTISH = 0.5  # share in which its dependence on brightness is measured
_CLIPS = 16.0  # levels from black and white
_JUMP = 200.0  # levels; larger second differences count as this
_TINY = 0.05  # levels; keeps logarithms finite
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_STRIPS = 32  # of the spectrum along rows and columns


def measure(images: Tensor) -> tuple[Tensor, Tensor]:
    """Measure images of a batch.

    Args:
        images: (B, 3, H, W) in [0, 1]; at least `SMALLEST` a side, blocks from the top left.

    Returns:
        (B, len(NAMES)) statistics, and (B, D) details that no one reads but an estimator: log2
        power of luma in each band and along rows and columns, gradients, noise and chroma noise at
        coarser scales, and traces of enlargement.

    Raises:
        ValueError: The images have another shape, or are smaller.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"images must be (B, 3, H, W) of at least {SMALLEST} pixels a side, "
            f"got {tuple(images.shape)}"
        )
    levels = images.float() * 255
    ycc = torch.einsum("dc,bchw->bdhw", levels.new_tensor(_TO_YCC), levels)
    luma, chroma = ycc[:, 0], ycc[:, 1:]
    noise, brightness = _noise(levels, ycc)
    bands, slope, cutoff = _spectrum(luma)
    spread = chroma.var(dim=(2, 3)).mean(1).sqrt()
    gradient, edges = _gradients(luma)
    rest = [slope, cutoff, _blockiness(luma), _log(spread), gradient, edges]
    details = [bands, _axes(luma), _enlargement(luma), _scales(ycc), brightness]
    return torch.stack([*noise, *rest], 1), torch.cat(details, 1)


def _scales(ycc: Tensor) -> Tensor:
    """Return noise of luma and chroma, and gradients of luma, at 1/2 and 1/4 of the size."""
    found = []
    for factor in (2, 4):
        small = F.avg_pool2d(ycc, factor)
        residue = _residue(small).abs().flatten(2)
        found += [
            _log(torch.quantile(residue, 0.25, dim=2)),
            torch.stack(_gradients(small[:, 0]), 1),
        ]
    return torch.cat(found, 1)


def _residue(planes: Tensor) -> Tensor:
    """Filter by second differences in both directions (Immerkaer 1996), which has norm 6."""
    return planes.diff(n=2, dim=3).diff(n=2, dim=2) / 6


def _log(values: Tensor) -> Tensor:
    return (values + _TINY).log2()


def _patches(planes: Tensor) -> Tensor:
    """Cut (B, C, H, W) into (B, C, P, 64), from the top left; what is left over is not used."""
    return planes.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH).flatten(2, 3).flatten(-2)


def _noise(levels: Tensor, ycc: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return noise of luma and of chroma, correlation of the channels, slope over brightness."""
    both = torch.cat([levels, ycc], 1)
    residue = _patches(_residue(F.pad(both, (1, 1, 1, 1), mode="reflect")))
    smooth = F.avg_pool2d(ycc[:, :1], 5, stride=1, padding=2, count_include_pad=False)
    smooth = _patches(smooth)[:, 0]
    brightness = smooth.mean(-1)
    clips = (brightness < _CLIPS) | (brightness > 255 - _CLIPS)  # noise is cut off there
    order = (smooth.std(-1) + 255 * clips).argsort(1)
    flat = order[:, : max(4, int(_FLAT * order.shape[1]))]
    chosen = residue.gather(2, flat[:, None, :, None].expand(-1, 6, -1, residue.shape[-1]))
    chosen = chosen.flatten(2)  # (B, 6, pixels of flat patches)
    variance = chosen.square().mean(-1)
    red, green, blue = chosen[:, :3].unbind(1)
    pairs = [(red, green), (green, blue), (red, blue)]
    tiny = _TINY**2
    correlation = sum(
        (a * b).mean(1) / ((a.square().mean(1) + tiny) * (b.square().mean(1) + tiny)).sqrt()
        for a, b in pairs
    )
    flattish = order[:, : int(_FLATTISH * order.shape[1])]
    strength = residue[:, 3].square().mean(-1).gather(1, flattish)
    slope = _relative_slope(brightness.gather(1, flattish), strength)
    luma, colour = variance[:, 3].sqrt(), variance[:, 4:].mean(1).sqrt()
    mean = brightness.gather(1, flat).mean(1, keepdim=True)
    parts = [_log(luma), _log(colour), torch.as_tensor(correlation) / 3, slope]
    return parts, _log(mean)


def _relative_slope(x: Tensor, y: Tensor) -> Tensor:
    """Return the slope of y over x along the last dimension, each divided by its mean.

    Outliers are clipped at three times the median, and the slope to [-2, 3].
    """
    y = torch.minimum(y, 3 * y.median(1, keepdim=True).values)
    x = x / x.mean(1, keepdim=True).clamp_min(1) - 1
    y = y / y.mean(1, keepdim=True).clamp_min(_TINY**2) - 1
    return ((x * y).mean(1) / (x.square().mean(1) + 0.01)).clamp(-2, 3)


def _spectrum(luma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log2 power of the bands, the slope, and the cut-off of (B, H, W)."""
    height, width = luma.shape[-2:]
    rows = torch.hann_window(height, periodic=False, device=luma.device)
    columns = torch.hann_window(width, periodic=False, device=luma.device)
    window = rows[:, None] * columns
    centred = (luma - luma.mean(dim=(1, 2), keepdim=True)) * window
    power = torch.fft.rfft2(centred).abs().square() / window.square().sum()
    down = torch.fft.fftfreq(height, device=luma.device)[:, None]
    across = torch.fft.rfftfreq(width, device=luma.device)
    radius = (down.square() + across.square()).sqrt()
    edges = luma.new_tensor(BANDS)
    which = torch.bucketize(radius, edges).flatten()  # 0 below, len(BANDS) beyond
    sums = luma.new_zeros(len(luma), len(BANDS) + 1).index_add_(1, which, power.flatten(1))
    counts = torch.bincount(which, minlength=len(BANDS) + 1)
    mean = sums[:, 1:-1] / counts[1:-1]
    bands = _log(mean)
    centres = (edges[1:] * edges[:-1]).sqrt()
    low = centres < 0.2
    x = centres[low].log2() - centres[low].log2().mean()
    slope = (bands[:, low] * x).sum(1) / x.square().sum()
    ring = edges[1:].pow(4) - edges[:-1].pow(4)  # of f^2 times the ring's area, up to a factor
    share = (mean * ring).cumsum(1)
    share = F.pad(share / share[:, -1:].clamp_min(1e-12), (1, 0))
    above = (share >= 0.95).int().argmax(1).clamp_min(1)
    ends = torch.stack([above - 1, above], 1)
    (low_share, high_share), (f0, f1) = share.gather(1, ends).unbind(1), edges[ends].unbind(1)
    cutoff = f0 + (f1 - f0) * (0.95 - low_share) / (high_share - low_share).clamp_min(1e-9)
    return bands, slope, cutoff


def _axes(luma: Tensor) -> Tensor:
    """Return (B, 32) log2 power along rows and columns, by frequency: reduction cuts both."""
    total = luma.new_zeros(())
    for plane in (luma, luma.transpose(1, 2)):
        window = torch.hann_window(plane.shape[2], periodic=False, device=luma.device)
        centred = (plane - plane.mean(dim=(1, 2), keepdim=True)) * window
        power = torch.fft.rfft(centred, dim=2).abs().square().mean(1) / window.square().sum()
        total = total + F.adaptive_avg_pool1d(power[:, 1:], _STRIPS)
    return _log(total / 2)


def _enlargement(luma: Tensor) -> Tensor:
    """Return where second differences are periodic, by how much, and both together, as (B, 3).

    An image enlarged by 1 / d has such differences of period 1 / d along rows and columns, so a
    peak at d or 1 - d cycles per pixel (Gallagher 2005). Multiples of 1/8, JPEG's, are passed over.
    """
    side = min(luma.shape[1:])
    total = luma.new_zeros(())
    for plane in (luma[:, :side, :side], luma[:, :side, :side].transpose(1, 2)):
        jumps = plane.diff(n=2, dim=2).abs().clamp_max(_JUMP).mean(1)
        jumps = jumps - F.avg_pool1d(F.pad(jumps[:, None], (8, 8), mode="reflect"), 17, 1)[:, 0]
        window = torch.hann_window(side - 2, periodic=False, device=luma.device)
        power = torch.fft.rfft(jumps * window, n=side).abs().square()
        total = total + power / (jumps.square().mean(1, keepdim=True) + 1e-3)
    f = torch.fft.rfftfreq(side, device=luma.device)
    ours = (f > 0.04) & ((f - (f * 8).round() / 8).abs() > 1.5 / side)
    power, f = (total[:, ours] + 1e-3).log2(), f[ours]
    height, place = power.max(1)
    height = height - power.median(1).values
    return torch.stack([f[place], height, f[place] * (height - 3.5).clamp(0, 2)], 1)


def _blockiness(luma: Tensor) -> Tensor:
    """Compare second differences across block borders with those one to three pixels away."""
    logs = []
    for plane in (luma, luma.transpose(1, 2)):
        step = plane.diff(dim=2)
        jump = (step[..., 1:-1] - (step[..., :-2] + step[..., 2:]) / 2).abs().mean(1)
        phase = (torch.arange(jump.shape[1], device=luma.device) + 2) % _PATCH  # 0: on a border
        on, off = jump[:, phase == 0].mean(1), jump[:, (phase == 3) | (phase == 5)].mean(1)
        logs.append(_log(on) - _log(off))
    return (logs[0] + logs[1]) / 2


def _gradients(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Return log2 of the median gradient, and by how much the 99 % quantile exceeds it."""
    across, down = luma[:, :-1].diff(dim=2), luma[:, :, :-1].diff(dim=1)
    size = (across.square() + down.square()).sqrt().flatten(1)
    low, high = _log(torch.quantile(size, size.new_tensor([0.5, 0.99]), dim=1))
    return low, high - low
