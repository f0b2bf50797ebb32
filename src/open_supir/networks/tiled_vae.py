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
import operator
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from open_supir.networks.tile_canvas import Canvas, joined
from open_supir.networks.tile_spans import Span, spans
from open_supir.networks.tiled_norms import Gathered, replace_norms
from open_supir.networks.vae import (
    AttnBlock,
    AutoencoderKL,
    DiagonalGaussian,
    Level,
    Middle,
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
HOST = 4  # times as many may be kept on the host of a GPU
THIN = 32  # a tile's side at least, in widths of what it overlaps, to be halved


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
    canvas = Canvas.of(image.to(device=weight.device, dtype=weight.dtype))
    if tiles.sees_all(height * width, weight.device):
        out = _swept(head, canvas, tiles, tile=tiles.tile)
        for unit in [unit for module in tail for unit in _units(module)]:
            out = unit(out)
    else:
        out = _swept(head + tail, canvas, tiles, tile=tiles.tile, window=tiles.window)
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
        for unit in [unit for module in head for unit in _units(module)]:
            z = unit(z)
        canvas = Canvas.of(z)
        del z
        out = _swept(tail, canvas, tiles, tile=tile)
    else:
        out = _swept(head + tail, Canvas.of(z), tiles, tile=tile, window=tiles.window)
    return out.to(out_device, torch.float32)


def _swept(
    modules: list[nn.Module],
    canvas: Canvas,
    tiles: VaeTiles,
    *,
    tile: int,
    window: int | None = None,
) -> Tensor:
    """Apply modules to a canvas, whose bands are dropped, in tiles of that side; see `_Sweep`."""
    is_one = tiles.norms == "estimated" or max(canvas.height, canvas.width) <= tile
    parts = [_Part(modules)] if is_one else _parts(modules, canvas, tile=tiles.tile)
    for part in parts:
        has_attention = any(isinstance(m, AttnBlock) for unit in part.units for m in unit.modules())
        sweep = _Sweep(
            part.units,
            canvas,
            tile=tile,
            may_halve=not is_one,
            estimates=tiles.norms == "estimated",
            window=window if has_attention else None,
        )
        canvas = sweep.run(on_host=part.on_host)
        tile = sweep.scaled(tile)
    return canvas.whole()


@dataclass
class _Part:
    """Units of a chain whose result is kept whole, on the host or on the device."""

    units: list[nn.Module]
    on_host: bool = False


def _parts(modules: list[nn.Module], source: Canvas, *, tile: int) -> list[_Part]:
    """Split a chain where its result may be kept, for tiles of that side in the image.

    Statistics of a norm take everything again since its part's start. Without norms there is
    nothing to be saved.
    """
    if not any(isinstance(m, nn.GroupNorm) for module in modules for m in module.modules()):
        return [_Part(modules)]
    units = [unit for module in modules for unit in _units(module)]
    sizes = list(accumulate(map(_growth, units), operator.mul, initial=source.pixels))
    most, parts, part = KEPT * tile**2, list[_Part](), list[nn.Module]()
    for unit, then, size in zip(units, [*units[1:], None], sizes[1:], strict=True):
        part.append(unit)
        values = size * _width(unit)
        # at the image's resolution, computing again is faster than to the host and back
        room = HOST * most if source.device.type == "cuda" and size < max(sizes) else most
        is_smaller_later = isinstance(then, Resampling) and then.down
        if then is None or (0 < values <= room and not is_smaller_later):
            parts.append(_Part(part, on_host=then is not None and values > most))
            part = []
    return parts


def _units(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, Middle):
        return [module.block_1, module.attn_1, module.block_2]
    if not isinstance(module, Level):
        return [module]
    return [*module.block, *(m for m in (module.downsample, module.upsample) if m is not None)]


def _growth(unit: nn.Module) -> float:
    """Return the number of pixels that one becomes."""
    return 1 if not isinstance(unit, Resampling) else 0.25 if unit.down else 4


def _width(unit: nn.Module) -> int:
    """Return the channels of a result that may be kept; 0 if it was smaller or will be soon."""
    if isinstance(unit, ResnetBlock):
        return unit.conv2.out_channels
    if isinstance(unit, AttnBlock):
        return unit.proj_out.out_channels
    return unit.conv.out_channels if isinstance(unit, Resampling) and unit.down else 0


class _Sweep:
    """A chain of modules applied to a canvas in tiles.

    Works on a copy of the modules that shares their weights, so that the gathered statistics belong
    to this call alone. The source is where the modules are; sides and positions are in its pixels.
    Tiles are halved, where allowed, if they hardly overlap even then. With a `window`, attention
    sees squares of that side. If it `estimates`, the statistics are those of the reduced source.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        source: Canvas,
        *,
        tile: int,
        may_halve: bool,
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
        if may_halve and window is None and tile >= 2 * THIN * halo:
            tile //= 2
        tile = math.ceil(tile / multiple) * multiple
        # without whole attention, neighbours differ and have to be blended
        self.ramp = 0 if window is None else math.ceil(tile / 8 / multiple) * multiple
        self.rows, self.columns = (
            spans(side, tile, halo=halo, ramp=self.ramp, multiple=multiple)
            for side in (source.height, source.width)
        )

    def run(self, *, on_host: bool = False) -> Canvas:
        """Return the chain's output for the whole canvas, whose bands are dropped on the way."""
        if len(self.rows) * len(self.columns) == 1:
            return Canvas.of(self.chain(self.source.whole()))
        if self.estimates:
            self._estimate()
        else:
            self._gather()
        source, bands = self.source, dict[Span, Tensor]()
        size = (source.batch, self.scaled(source.height), self.scaled(source.width))
        out = Canvas(size, source.device, on_host=on_host)
        for number, row in enumerate(self.rows):
            for column, crop in self._crops(row):
                self._put(bands, self.chain(crop), row, column)
                del crop
            later = self.rows[number + 1 :]
            source.keep(later)
            for span in list(bands):
                if not any(span.is_near(other) for other in later):
                    out.add(self.scaled(span.core_start), bands.pop(span))
        return out

    def _gather(self) -> None:
        """Take the statistics of all tiles, one norm after another."""
        for norm in self.norms:
            for row in self.rows:
                for column, crop in self._crops(row):
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
        source = self.source.whole()
        area = math.prod(source.shape[-2:])
        size = [
            math.ceil(side * self.tile / area**0.5 / self.zoom_out) * self.zoom_out
            for side in source.shape[-2:]
        ]
        for norm in self.norms:
            norm.is_model = True
        self.chain(nn.functional.interpolate(source, size=size, mode="nearest-exact"))

    def _crops(self, row: Span) -> Iterator[tuple[Span, Tensor]]:
        pieces = self.source.rows(row.start, row.stop)
        for column in self.columns:
            yield column, joined(pieces, slice(column.start, column.stop))

    def _put(self, bands: dict[Span, Tensor], tile: Tensor, row: Span, column: Span) -> None:
        """Write a tile's own share into its band; with a ramp, add it blended to all it touches."""
        y, x = (self.scaled(span.start) for span in (row, column))
        if self.ramp == 0:
            band = self._band(bands, row, tile)
            own = [
                s.own_share(side) for s, side in zip((row, column), tile.shape[-2:], strict=True)
            ]
            place = slice(self.scaled(column.core_start), self.scaled(column.core_stop))
            band[..., place] = tile[..., *own]
            return
        profiles = (span.profile(self.scaled, tile.device) for span in (row, column))
        weight = torch.outer(*profiles).to(tile.dtype)
        for other in self.rows:
            start, stop = (self.scaled(edge) for edge in (other.core_start, other.core_stop))
            first, last = max(y, start), min(y + tile.shape[-2], stop)
            if other.is_near(row) and first < last:
                band = self._band(bands, other, tile)
                place = band[..., first - start : last - start, x : x + tile.shape[-1]]
                place.addcmul_(tile[..., first - y : last - y, :], weight[first - y : last - y])

    def _band(self, bands: dict[Span, Tensor], row: Span, tile: Tensor) -> Tensor:
        """Return a row's band of the output, zeros at first."""
        if row not in bands:
            height = self.scaled(row.core_stop) - self.scaled(row.core_start)
            bands[row] = tile.new_zeros(*tile.shape[:2], height, self.scaled(self.source.width))
        return bands[row]

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
