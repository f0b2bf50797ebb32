"""The autoencoder on images of any size: tile by tile, with the same result as on the whole image.

Two operations see further than a few pixels. The middle block's attention runs on the whole latent,
where it is small. Each group norm needs the statistics of the whole image: they are gathered over
the tiles, one norm after another, recomputing everything before that norm each time, so that only
one tile is in memory. The rest are convolutions, which are exact on tiles that overlap by their
reach.

If the latent is too large for its attention, attention sees only windows of it, and the middle runs
within tiles too. The result is then an approximation, with windows and tiles blended.

Shapes: B batch, H W image size, h w latent size.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from open_supir.base.devices import exact
from open_supir.networks.vae import (
    AttnBlock,
    AutoencoderKL,
    DiagonalGaussian,
    Resampling,
    RobustEncoder,
)

# Attention takes little memory but 4 * tokens ** 2 * width operations: at full size, about as many
# as all convolutions together at 2 ** 18 tokens, and 2e15 at 2 ** 20, which take a GPU seconds.
MAX_TOKENS_CPU = 2**18
MAX_TOKENS_GPU = 2**20


@dataclass(frozen=True, kw_only=True)
class VaeTiles:
    """How the autoencoder processes large images.

    Attributes:
        tile: Side of a tile in pixels, rounded up to whole latent pixels; images that fit in one
            are not tiled.
        attention_tokens: Most latent pixels that the middle's attention sees at once; larger
            latents are split into windows of about that many. None means 2 ** 20 on a GPU
            (8192x8192 at full size) and 2 ** 18 on a CPU (4096x4096).

    Raises:
        ValueError: `tile` is below 32, or `attention_tokens` below 1.
    """

    tile: int = 1024
    attention_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tile < 32:
            raise ValueError(f"a VAE tile must be at least 32 pixels, got {self.tile}")
        if self.attention_tokens is not None and self.attention_tokens < 1:
            raise ValueError(f"attention_tokens must be positive, got {self.attention_tokens}")

    def window(self, device: torch.device) -> int:
        """Return the side of the largest square that the attention sees at once."""
        default = MAX_TOKENS_CPU if device.type == "cpu" else MAX_TOKENS_GPU
        return math.isqrt(self.attention_tokens or default)

    def is_exact(self, tokens: int, device: torch.device) -> bool:
        """Say whether attention runs on the whole of a latent with that many pixels."""
        return tokens <= self.window(device) ** 2


@torch.no_grad()
def encode_tiled(
    part: AutoencoderKL | RobustEncoder, image: Tensor, tiles: VaeTiles
) -> DiagonalGaussian:
    """Encode images (B, 3, H, W) in [-1, 1] on any device; the posterior is on the network's.

    Latents are unscaled. H and W must be multiples of the downsampling factor.
    """
    encoder, weight = part.encoder, part.encoder.conv_in.weight
    factor = 2 ** (len(encoder.down) - 1)
    height, width = (side // factor for side in image.shape[-2:])
    tail = [encoder.mid, encoder.norm_out, nn.SiLU(), encoder.conv_out, part.quant_conv]
    head = [encoder.conv_in, *encoder.down]
    exact = tiles.is_exact(height * width, weight.device)
    sweep = _Sweep(
        head if exact else head + tail,
        image,
        weight,
        zoom_out=factor,
        tile=tiles.tile,
        window=None if exact else tiles.window(weight.device),
    )
    out = sweep.run(torch.device(weight.device))
    if exact:
        for module in tail:
            out = module(out)
    return DiagonalGaussian.from_moments(out)


@torch.no_grad()
def decode_tiled(
    vae: AutoencoderKL, z: Tensor, tiles: VaeTiles, *, out_device: torch.device | str = "cpu"
) -> Tensor:
    """Decode scaled latents (B, z, h, w) to images (B, 3, H, W), float32, on `out_device`."""
    decoder, weight = vae.decoder, vae.decoder.conv_in.weight
    factor = vae.downsampling
    z = z.to(device=weight.device, dtype=weight.dtype) / vae.scale_factor
    head = [vae.post_quant_conv, decoder.conv_in, decoder.mid]
    tail = [*reversed(decoder.up), decoder.norm_out, nn.SiLU(), decoder.conv_out]
    exact = tiles.is_exact(z.shape[-2] * z.shape[-1], weight.device)
    if exact:
        for module in head:
            z = module(z)
    tile = -(-tiles.tile // factor)
    sweep = _Sweep(
        tail if exact else head + tail,
        z,
        weight,
        zoom_in=factor,
        tile=tile,
        window=None if exact else tiles.window(weight.device),
    )
    return sweep.run(torch.device(out_device), torch.float32)


class _Sweep:
    """A chain of modules applied to a canvas in tiles.

    Works on a copy of the modules that shares their weights, so that the gathered statistics belong
    to this call alone. Sides and positions are in pixels of the source; the chain enlarges by
    `zoom_in` or reduces by `zoom_out`. With a `window`, attention sees squares of that side.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        source: Tensor,
        like: Tensor,
        *,
        tile: int,
        window: int | None,
        zoom_in: int = 1,
        zoom_out: int = 1,
    ) -> None:
        chain = nn.Sequential(*modules)
        shared = {id(p): p for p in chain.parameters()}
        self.chain = deepcopy(chain, shared)
        self.norms = _replace_norms(self.chain)
        if window is not None:
            _replace_attention(self.chain, window)
        self.source, self.like = source, like
        self.zoom_in, self.zoom_out = zoom_in, zoom_out
        halo = math.ceil(_reach(chain) / zoom_out) * zoom_out
        tile = math.ceil(tile / zoom_out) * zoom_out
        # without whole attention, neighbours differ and have to be blended
        ramp = 0 if window is None else math.ceil(tile / 8 / zoom_out) * zoom_out
        height, width = source.shape[-2:]
        self.rows = _spans(height, tile, halo=halo, ramp=ramp, multiple=zoom_out)
        self.columns = _spans(width, tile, halo=halo, ramp=ramp, multiple=zoom_out)

    def run(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Return the chain's output for the whole canvas, on `device`."""
        if len(self.rows) * len(self.columns) == 1:
            return self._apply(self.source).to(device=device, dtype=dtype)
        for norm in self.norms:
            for row, column, crop in self._crops():
                norm.core = (row, column)
                try:
                    self._apply(crop)
                except _Gathered:
                    continue
            norm.finish()
        out: Tensor | None = None
        for row, column, crop in self._crops():
            tile = self._apply(crop).to(device=device, dtype=dtype)
            if out is None:
                size = [self._scaled(side) for side in self.source.shape[-2:]]
                out = tile.new_zeros(*tile.shape[:2], *size)
            y, x = (self._scaled(span.start) for span in (row, column))
            weight = row.profile(self._scaled).outer(column.profile(self._scaled)).to(tile)
            out[..., y : y + tile.shape[-2], x : x + tile.shape[-1]].addcmul_(tile, weight)
        assert out is not None  # there is at least one row and one column
        return out

    def _crops(self) -> Iterator[tuple["_Span", "_Span", Tensor]]:
        for row in self.rows:
            for column in self.columns:
                crop = self.source[..., row.start : row.stop, column.start : column.stop]
                yield row, column, crop

    def _apply(self, crop: Tensor) -> Tensor:
        return self.chain(crop.to(device=self.like.device, dtype=self.like.dtype))

    def _scaled(self, position: int) -> int:
        return position * self.zoom_in // self.zoom_out


@dataclass(frozen=True)
class _Span:
    """A tile's extent along one side: what it reads, and within that its own share (core)."""

    start: int
    core_start: int
    core_stop: int
    stop: int
    length: int  # of the canvas
    ramp: int

    def profile(self, scaled) -> Tensor:  # noqa: ANN001 - position -> position in the output
        """Return the weights of the tile's output; those of all tiles sum to 1 everywhere."""
        x = torch.arange(scaled(self.start), scaled(self.stop)) + 0.5
        weight = torch.ones(len(x))
        if self.core_start > 0:
            weight = _fade(x - scaled(self.core_start), scaled(self.ramp))
        if self.core_stop < self.length:
            weight = weight - _fade(x - scaled(self.core_stop), scaled(self.ramp))
        return weight


def _fade(distance: Tensor, ramp: int) -> Tensor:
    """Rise smoothly from 0 to 1 between distances -`ramp` and `ramp`."""
    if ramp == 0:
        return (distance > 0).float()
    return 0.5 + 0.5 * (distance / ramp).clamp(-1, 1).mul(math.pi / 2).sin()


def _spans(length: int, tile: int, *, halo: int, ramp: int, multiple: int) -> list[_Span]:
    """Split a side into shares of about equal length, at most `tile`."""
    count = math.ceil(length / tile)
    edges = [round(i * length / count / multiple) * multiple for i in range(count)] + [length]
    return [
        _Span(
            max(0, start - ramp - halo), start, stop, min(length, stop + ramp + halo), length, ramp
        )
        for start, stop in pairwise(edges)
    ]


def _reach(chain: nn.Module) -> float:
    """Return how many source pixels the chain's convolutions see beyond an output pixel."""
    reach, size = 0.0, 1.0  # size of a pixel here, in source pixels
    resampled: set[int] = set()
    for module in chain.modules():
        if isinstance(module, Resampling):
            resampled.add(id(module.conv))
            if module.down:
                reach, size = reach + 2 * size, size * 2  # padded at the far side only
            else:
                reach, size = reach + size / 2, size / 2
        elif isinstance(module, nn.Conv2d) and id(module) not in resampled:
            reach += module.kernel_size[0] // 2 * size
    return reach


class _Gathered(Exception):
    """Stops a tile's run through the chain at the norm whose statistics are being gathered."""


class _WholeNorm(nn.Module):
    """A group norm that first gathers the statistics of all tiles, then applies them."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.core: tuple[_Span, _Span] | None = None
        self.count, self.mean, self.spread = 0, torch.zeros(()), torch.zeros(())
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w), or gather from it and raise `_Gathered`."""
        if self.scale is not None and self.shift is not None:
            return torch.addcmul(self.shift.to(x), x, self.scale.to(x))
        if self.core is None:  # a single tile covers the canvas
            return self.norm(x)
        self._gather(self._own_share(x))
        raise _Gathered

    def _own_share(self, x: Tensor) -> Tensor:
        assert self.core is not None
        slices = []
        for span, side in zip(self.core, x.shape[-2:], strict=True):
            read = span.stop - span.start
            slices.append(
                slice(
                    (span.core_start - span.start) * side // read,
                    (span.core_stop - span.start) * side // read,
                )
            )
        return x[..., slices[0], slices[1]]

    def _gather(self, x: Tensor) -> None:
        """Merge the tile's mean and squared deviations into the canvas's (Chan et al. 1979)."""
        groups = x.float().reshape(len(x), self.norm.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=-1, correction=0)
        variance, mean = exact(variance), exact(mean)
        count = groups.shape[-1]
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.spread = self.spread + variance * count + delta**2 * (self.count * count / total)
        self.count = total

    def finish(self) -> None:
        """Turn the statistics into one scale and shift per channel."""
        weight, bias = exact(self.norm.weight), exact(self.norm.bias)
        each = self.norm.num_channels // self.norm.num_groups
        deviation = (self.spread / self.count + self.norm.eps).sqrt().repeat_interleave(each, dim=1)
        scale = weight / deviation
        shift = bias - self.mean.repeat_interleave(each, dim=1) * scale
        place = self.norm.weight.device
        self.scale, self.shift = (v[..., None, None].float().to(place) for v in (scale, shift))


def _replace_norms(module: nn.Module) -> list[_WholeNorm]:
    """Replace every group norm below `module`; return the new ones in order of execution."""
    norms: list[_WholeNorm] = []
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            norm = _WholeNorm(child)
            setattr(module, name, norm)
            norms.append(norm)
        else:
            norms += _replace_norms(child)
    return norms


class _LocalAttention(nn.Module):
    """Attention within blended windows instead of over the whole."""

    def __init__(self, attention: AttnBlock, window: int) -> None:
        super().__init__()
        self.attention = attention
        self.norm = attention.norm
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        normed, out = self.norm(x), x.clone()
        ramp = self.window // 8
        rows, columns = (
            _spans(side, max(1, self.window - 2 * ramp), halo=0, ramp=ramp, multiple=1)
            for side in x.shape[-2:]
        )
        for row in rows:
            for column in columns:
                place = (..., slice(row.start, row.stop), slice(column.start, column.stop))
                weight = row.profile(int).outer(column.profile(int)).to(x)
                out[place].addcmul_(self.attention.attend(normed[place]), weight)
        return out


def _replace_attention(module: nn.Module, window: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, AttnBlock):
            setattr(module, name, _LocalAttention(child, window))
        else:
            _replace_attention(child, window)
