"""Random numbers as a pure function of (key, counter): no state, the same bits on every device.

splitmix64 (Steele, Lea and Flood 2014) hashes each counter in wrapping int64 arithmetic. The hashes
index tables of normals and Poisson counts, so no device's exp, log or cos is involved: draws are
bit-identical on CPUs and GPUs, which a seeded `torch.Generator` does not guarantee. It is faster,
too: Poisson noise for 512 x 512 x 3 takes 4 ms on one core, `torch.poisson` alone 23 ms.

Shapes: B batch, H W image size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.degradation.cached import cached

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_ROW = 1 << 20  # counter step per row, so that (y, x) has the same counter at any width
_NORMAL_BITS = 16
_BIN_BITS, _ROUND_BITS = 9, 12  # 21 bits per Poisson count: a 64-bit hash serves three channels
_BINS = 1 << _BIN_BITS


def mix(x: Tensor) -> Tensor:
    """Hash an int64 tensor by splitmix64's finaliser: each input bit flips half the output."""
    x = (x >> 30).bitwise_and_((1 << 34) - 1).bitwise_xor_(x).mul_(_MIX_1)
    x = (x >> 27).bitwise_and_((1 << 37) - 1).bitwise_xor_(x).mul_(_MIX_2)
    return (x >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(x)


def derive(seeds: Tensor, stream: int) -> Tensor:
    """Return each seed's key for one stream of random numbers: int64 in the shape of `seeds`."""
    return mix(mix(seeds + _GOLDEN) + torch.tensor(stream) * _GOLDEN)


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """Return (B, count) float64 in (0, 1); column j depends only on its seed and j."""
    slots = torch.arange(1, count + 1) * _GOLDEN
    bits = mix(derive(seeds, 0)[:, None] + slots)
    return ((bits >> 11).bitwise_and_((1 << 53) - 1).double() + 0.5) * 2.0**-53


def row_counters(keys: Tensor, y: Tensor) -> Tensor:
    """Return (B, H) int64 counters from (B,) keys and (H,) or (B, H) int64 row numbers."""
    return keys[:, None] + y * _ROW * _GOLDEN


def column_counters(x: Tensor) -> Tensor:
    """Return int64 counters of (W,) or (B, W) int64 column numbers."""
    return x * _GOLDEN


def pixel_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Return (B, H, W) int64 hashes of (key, y, x) from (B, H) and (W,) or (B, W) counters."""
    return mix(rows[:, :, None] + columns[..., None, :])


@cached
def _normal_table(device: torch.device) -> Tensor:
    """Return 65536 normal quantiles, scaled to variance 1; the largest is 4.3."""
    steps = 1 << _NORMAL_BITS
    table = torch.special.ndtri((torch.arange(steps, dtype=torch.float64) + 0.5) / steps)
    return (table / table.square().mean().sqrt()).float().to(device, non_blocking=True)


def normals(bits: Tensor, planes: int) -> Tensor:
    """Turn (B, H, W) hashes into (B, planes, H, W) float32 normals, at most four planes."""
    fields = _fields(bits, planes, _NORMAL_BITS).bitwise_and_((1 << _NORMAL_BITS) - 1)
    return _look_up(_normal_table(bits.device), fields)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return table[index]; twice as fast as `take`."""
    return table.index_select(0, index.flatten()).view(index.shape)


def _fields(bits: Tensor, planes: int, width: int) -> Tensor:
    """Shift each plane's own `width` bits to the bottom: (B, H, W) -> (B, planes, H, W)."""
    return bits[:, None] >> _shifts(planes, width, bits.device)


@cached
def _shifts(planes: int, width: int, device: torch.device) -> Tensor:
    return (torch.arange(planes) * width)[:, None, None].to(device, non_blocking=True)


@cached
def _poisson_table(device: torch.device) -> Tensor:
    """Mean of the quantile function of Poisson(level / 255 * 2^v) in each of 512 bins of [0, 1].

    Rounding an entry up with the probability of its fraction gives the exact quantile wherever a
    bin holds at most one step: everywhere except in the outermost 2 % at high rates, where the mean
    stays exact and the variance is kept to 1e-3. Flat (9 * 256 * 512,) float32.
    """
    rate = torch.arange(256, dtype=torch.float64) / 255 * 2.0 ** torch.arange(9)[:, None]
    rate = rate.reshape(-1, 1)
    counts = torch.arange(400, dtype=torch.float64)
    log_weight = counts * rate.clamp_min(1e-300).log() - rate - torch.lgamma(counts + 1)
    below = log_weight.exp().cumsum(1)  # distribution function
    below_sum = F.pad(below.cumsum(1), (1, 0))
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64).repeat(len(rate), 1)
    quantile = torch.searchsorted(below, edges)  # counts whose distribution function is below
    area = edges * quantile - below_sum.gather(1, quantile)  # integral of the quantile from 0
    return (area.diff(dim=1) * _BINS).flatten().float().to(device, non_blocking=True)


def poisson_counts(
    bits: Tensor, level: Tensor, log2_levels: Tensor, shared: Tensor | None = None
) -> Tensor:
    """Draw Poisson(level / 255 * 2^log2_levels), monotone in the level.

    Monotone, so that a level rounded differently on another device moves the count by about one.

    Args:
        bits: (B, H, W) hashes.
        level: (B, C, H, W) int32 in 0..255, C at most 3.
        log2_levels: (B,) int64 in 0..8.
        shared: (B,) bool; where True all channels use the same bits.

    Returns:
        (B, C, H, W) float32 counts.
    """
    width = _BIN_BITS + _ROUND_BITS
    fields = _fields(bits, level.shape[1], width).int()  # the lower 32 bits; 21 are used
    if shared is not None:
        fields = torch.where(shared[:, None, None, None], fields[:, :1], fields)
    start = (log2_levels << (8 + _BIN_BITS)).int()  # of this count's part of the table
    row = (level << _BIN_BITS).add_(start[:, None, None, None])
    where = row.bitwise_or_((fields >> _ROUND_BITS).bitwise_and_(_BINS - 1))
    fraction = fields.bitwise_and_((1 << _ROUND_BITS) - 1).float()
    counts = _look_up(_poisson_table(bits.device), where)
    return counts.add_(fraction, alpha=2.0**-_ROUND_BITS).floor_()
