"""The autoencoder on images of any size: tile by tile, with the same result as on the whole image.

Two operations see further than a few pixels. The middle block's attention runs on the whole latent,
where it is small. Each group norm needs the statistics of the whole image: they are gathered over
the tiles, one norm after another, recomputing what is before that norm each time. So that this is
little, activations of the whole image are kept between blocks, as long as they are not too large.
The rest are convolutions, which are exact on tiles that overlap by their reach.

With estimated norms, their statistics are those of the reduced image instead, and nothing is kept.

If the latent is too large for its attention, attention sees only windows of it, and the middle runs
within tiles too. The result is then an approximation, with windows and tiles blended.

Shapes: B batch, H W image size, h w latent size.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from open_supir.networks.tile_spans import Span, spans
from open_supir.networks.tiled_norms import Gathered, replace_norms
from open_supir.networks.vae import (
    AttnBlock,
    AutoencoderKL,
    DiagonalGaussian,
    Level,
    Resampling,
    ResnetBlock,
    RobustEncoder,
)

# Attention takes little memory but 4 * tokens ** 2 * width operations: at full size, about as many
# as all convolutions together at 2 ** 18 tokens, and 2e15 at 2 ** 20, which take a GPU seconds.
MAX_TOKENS_CPU = 2**18
MAX_TOKENS_GPU = 2**20
# Side in latent pixels of the windows that it sees of larger latents: 512 pixels at full size, more
# than the 256 that SDXL's autoencoder was trained on. Cost grows with their area.
WINDOW = 64
TileNorms = Literal["exact", "estimated"]
KEPT = 2**10  # values of kept activations per pixel of a tile: 2 GiB in bfloat16 for tiles of 1024


@dataclass(frozen=True, kw_only=True)
class VaeTiles:
    """How the autoencoder processes large images.

    Attributes:
        tile: Side of a tile in pixels, rounded up to whole latent pixels; images that fit in one
            are not tiled.
        norms: Statistics of group norms: "exact" gathers them over all tiles; "estimated" takes
            those of the image reduced to the area of a tile.
        attention_tokens: Most latent pixels that the middle's attention sees at once; larger
            latents are split into windows of about that many. None means 2 ** 20 on a GPU
            (8192x8192 at full size), 2 ** 18 on a CPU (4096x4096), and windows of 64 x 64.

    Raises:
        ValueError: `tile` is below 32, or `attention_tokens` below 1.
    """

    tile: int = 1024
    norms: TileNorms = "exact"
    attention_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.tile < 32:
            raise ValueError(f"a VAE tile must be at least 32 pixels, got {self.tile}")
        if self.attention_tokens is not None and self.attention_tokens < 1:
            raise ValueError(f"attention_tokens must be positive, got {self.attention_tokens}")

    @property
    def window(self) -> int:
        """Side in latent pixels of the attention's windows, where it does not see all."""
        return WINDOW if self.attention_tokens is None else math.isqrt(self.attention_tokens)

    def sees_all(self, tokens: int, device: torch.device) -> bool:
        """Return whether attention runs on the whole of a latent with that many pixels."""
        default = MAX_TOKENS_CPU if device.type == "cpu" else MAX_TOKENS_GPU
        return tokens <= (self.attention_tokens or default)

    def is_exact(self, tokens: int, device: torch.device) -> bool:
        """Say whether the result equals that of the whole image, up to rounding."""
        return self.norms == "exact" and self.sees_all(tokens, device)


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
    image = image.to(device=weight.device, dtype=weight.dtype)
    if tiles.sees_all(height * width, weight.device):
        out = _swept(head, image, tiles, tile=tiles.tile)
        for module in tail:
            out = module(out)
    else:
        out = _swept(head + tail, image, tiles, tile=tiles.tile, window=tiles.window)
    return DiagonalGaussian.from_moments(out)


@torch.no_grad()
def decode_tiled(
    vae: AutoencoderKL, z: Tensor, tiles: VaeTiles, *, out_device: torch.device | str = "cpu"
) -> Tensor:
    """Decode scaled latents (B, z, h, w) to images (B, 3, H, W), float32, on `out_device`."""
    decoder, weight = vae.decoder, vae.decoder.conv_in.weight
    z = z.to(device=weight.device, dtype=weight.dtype) / vae.scale_factor
    head = [vae.post_quant_conv, decoder.conv_in, decoder.mid]
    tail = [*reversed(decoder.up), decoder.norm_out, nn.SiLU(), decoder.conv_out]
    tile = -(-tiles.tile // vae.downsampling)
    if tiles.sees_all(z.shape[-2] * z.shape[-1], weight.device):
        for module in head:
            z = module(z)
        out = _swept(tail, z, tiles, tile=tile)
    else:
        out = _swept(head + tail, z, tiles, tile=tile, window=tiles.window)
    return out.to(out_device, torch.float32)


def _swept(
    modules: list[nn.Module], x: Tensor, tiles: VaeTiles, *, tile: int, window: int | None = None
) -> Tensor:
    """Apply modules to a canvas in tiles of that side; see `_Sweep`."""
    estimates, most = tiles.norms == "estimated", tiles.tile**2 * KEPT
    is_one = estimates or window is not None
    for part in [modules] if is_one else _parts(modules, x, most=most):
        sweep = _Sweep(part, x, tile=tile, estimates=estimates, window=window)
        x = sweep.run()
        tile = sweep.scaled(tile)
    return x


def _parts(modules: list[nn.Module], x: Tensor, *, most: int) -> list[list[nn.Module]]:
    """Split a chain where what is kept has at most `most` values.

    Statistics of a norm take everything again since its part's start. Without norms there is
    nothing to be saved.
    """
    if not any(isinstance(m, nn.GroupNorm) for module in modules for m in module.modules()):
        return [modules]
    units = [unit for module in modules for unit in _units(module)]
    parts, part, pixels = [], list[nn.Module](), x.shape[0] * x.shape[-2] * x.shape[-1]
    for unit, then in zip(units, [*units[1:], None], strict=True):
        part.append(unit)
        is_smaller_later = isinstance(then, Resampling) and then.down
        if isinstance(unit, ResnetBlock):
            values = pixels * unit.conv2.out_channels
        elif isinstance(unit, Resampling):
            pixels = pixels // 4 if unit.down else pixels * 4
            values = pixels * unit.conv.out_channels if unit.down else most + 1  # was smaller
        else:
            values = most + 1
        if then is None or (values <= most and not is_smaller_later):
            parts.append(part)
            part = []
    return parts


def _units(module: nn.Module) -> list[nn.Module]:
    if not isinstance(module, Level):
        return [module]
    return [*module.block, *(m for m in (module.downsample, module.upsample) if m is not None)]


class _Sweep:
    """A chain of modules applied to a canvas in tiles.

    Works on a copy of the modules that shares their weights, so that the gathered statistics belong
    to this call alone. The source is where the modules are; sides and positions are in its pixels.
    With a `window`, attention sees squares of that side. If it `estimates`, the statistics are
    those of the reduced source.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        source: Tensor,
        *,
        tile: int,
        estimates: bool,
        window: int | None,
    ) -> None:
        chain = nn.Sequential(*modules)
        shared = {id(p): p for p in chain.parameters()}
        self.chain = deepcopy(chain, shared)
        self.norms = replace_norms(self.chain)
        if window is not None:
            _replace_attention(self.chain, window)
        self.source, self.tile, self.estimates = source, tile, estimates
        resampled = [m.down for m in chain.modules() if isinstance(m, Resampling)]
        self.zoom_in, self.zoom_out = 2 ** resampled.count(False), 2 ** resampled.count(True)
        multiple = self.zoom_out
        halo = math.ceil(_reach(chain) / multiple) * multiple
        tile = math.ceil(tile / multiple) * multiple
        # without whole attention, neighbours differ and have to be blended
        self.ramp = 0 if window is None else math.ceil(tile / 8 / multiple) * multiple
        height, width = source.shape[-2:]
        self.rows = spans(height, tile, halo=halo, ramp=self.ramp, multiple=multiple)
        self.columns = spans(width, tile, halo=halo, ramp=self.ramp, multiple=multiple)

    def run(self) -> Tensor:
        """Return the chain's output for the whole canvas."""
        if len(self.rows) * len(self.columns) == 1:
            return self.chain(self.source)
        if self.estimates:
            self._estimate()
        else:
            self._gather()
        out = torch.empty(0)
        for number, (row, column, crop) in enumerate(self._crops()):
            tile = self.chain(crop)
            if number == 0:
                size = [self.scaled(side) for side in self.source.shape[-2:]]
                out = tile.new_zeros(*tile.shape[:2], *size)
            self._put(out, tile, row, column)
        return out

    def _gather(self) -> None:
        """Take the statistics of all tiles, one norm after another."""
        for norm in self.norms:
            for row, column, crop in self._crops():
                norm.core = (row, column)
                try:
                    self.chain(crop)
                except Gathered:
                    continue
            norm.finish()

    def _estimate(self) -> None:
        """Take the statistics of all norms from one run over the reduced source.

        Pixels are left out, not averaged, which would take away variance.
        """
        area = math.prod(self.source.shape[-2:])
        size = [
            math.ceil(side * self.tile / area**0.5 / self.zoom_out) * self.zoom_out
            for side in self.source.shape[-2:]
        ]
        for norm in self.norms:
            norm.is_model = True
        self.chain(nn.functional.interpolate(self.source, size=size, mode="nearest-exact"))

    def _crops(self) -> Iterator[tuple[Span, Span, Tensor]]:
        for row in self.rows:
            for column in self.columns:
                crop = self.source[..., row.start : row.stop, column.start : column.stop]
                yield row, column, crop

    def _put(self, out: Tensor, tile: Tensor, row: Span, column: Span) -> None:
        """Write a tile's own share into the output; with a ramp, add it blended."""
        if self.ramp == 0:
            place = [
                slice(self.scaled(s.core_start), self.scaled(s.core_stop)) for s in (row, column)
            ]
            own = [
                s.own_share(side) for s, side in zip((row, column), tile.shape[-2:], strict=True)
            ]
            out[..., *place] = tile[..., *own]
            return
        y, x = (self.scaled(span.start) for span in (row, column))
        profiles = (span.profile(self.scaled, tile.device) for span in (row, column))
        weight = torch.outer(*profiles).to(tile.dtype)
        out[..., y : y + tile.shape[-2], x : x + tile.shape[-1]].addcmul_(tile, weight)

    def scaled(self, position: int) -> int:
        """Return a position of the source in the output."""
        return position * self.zoom_in // self.zoom_out


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
            spans(side, max(1, self.window - 2 * ramp), halo=0, ramp=ramp, multiple=1)
            for side in x.shape[-2:]
        )
        for row in rows:
            for column in columns:
                place = (..., slice(row.start, row.stop), slice(column.start, column.stop))
                weight = torch.outer(*(s.profile(int, x.device) for s in (row, column))).to(x.dtype)
                out[place].addcmul_(self.attention.attend(normed[place]), weight)
        return out


def _replace_attention(module: nn.Module, window: int) -> None:
    for name, child in module.named_children():
        if isinstance(child, AttnBlock):
            setattr(module, name, _LocalAttention(child, window))
        else:
            _replace_attention(child, window)
