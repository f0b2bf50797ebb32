"""The SDXL UNet: a trunk (embeddings, encoder, middle) and a decoder with open joints.

The network's code contains no control: a `Join` decides, at the three places where control can
enter, how features continue. Shapes: B batch, C channels, h w latent size, E embedding width. The
latent's sides must be multiples of 2 ** (levels - 1). Parameter names are the official ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from open_supir.base.registry import register
from open_supir.networks.conditioner import Conditioning
from open_supir.networks.layers import (
    Downsample,
    GroupNorm,
    ResBlock,
    SpatialTransformer,
    Upsample,
    run_module,
    sinusoidal_embedding,
    zero_init,
)


class Join(Protocol):
    """How control enters the UNet's middle and decoder during one call."""

    def middle(self, h: Tensor) -> Tensor:
        """Return the middle block's output (B, C, h, w), controlled."""
        ...

    def skip(self, h: Tensor, skip: Tensor, index: int) -> Tensor:
        """Join decoder feature and skip before decoder block `index`: (B, C + C_skip, h, w)."""
        ...

    def upsample(self, h: Tensor, index: int) -> Tensor:
        """Return the feature (B, C, h, w) that decoder block `index` is about to upsample."""
        ...


class PlainJoin:
    """No control: concatenate the skip, change nothing else."""

    def middle(self, h: Tensor) -> Tensor:
        """Return `h`."""
        return h

    def skip(self, h: Tensor, skip: Tensor, index: int) -> Tensor:
        """Concatenate; decoder feature first, as the official weights expect."""
        return torch.cat([h, skip], dim=1)

    def upsample(self, h: Tensor, index: int) -> Tensor:
        """Return `h`."""
        return h


@dataclass(frozen=True)
class DecoderBlock:
    """Widths of one decoder block's input (feature and skip joined) and output, and its level."""

    channels: int
    skip_channels: int
    out_channels: int
    level: int
    upsamples: bool


@dataclass(frozen=True)
class Layout:
    """Widths along a UNet: encoder outputs in order, the middle, the decoder blocks in order."""

    skip_channels: tuple[int, ...]
    middle_channels: int
    decoder: tuple[DecoderBlock, ...]

    @classmethod
    def of(
        cls, *, model_channels: int, channel_mult: Sequence[int], num_res_blocks: int
    ) -> "Layout":
        """Derive the widths from the three numbers that define them."""
        widths = [model_channels * mult for mult in channel_mult]
        skips = [model_channels]
        for level, width in enumerate(widths):
            skips += [width] * num_res_blocks
            if level < len(widths) - 1:
                skips.append(width)  # the downsampled copy
        channels, remaining, blocks = widths[-1], list(skips), []
        for level in reversed(range(len(widths))):
            for position in range(num_res_blocks + 1):
                upsamples = level > 0 and position == num_res_blocks
                blocks.append(
                    DecoderBlock(channels, remaining.pop(), widths[level], level, upsamples)
                )
                channels = widths[level]
        return cls(tuple(skips), widths[-1], tuple(blocks))


class Trunk(nn.Module):
    """Embeddings, encoder and middle block, which the UNet and its control adaptor share.

    Args:
        in_channels: Latent channels.
        model_channels: Width of the first level; a multiple of 32 (group norms).
        channel_mult: Width of each level in units of `model_channels`.
        num_res_blocks: Residual blocks per level.
        transformer_depth: Transformer blocks per spatial transformer, by level; 0 means none. The
            last number also applies to the middle block.
        head_channels: Channels of one attention head.
        context_dim: Width of the text tokens.
        vector_dim: Width of the pooled text and size vector.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        transformer_depth: Sequence[int],
        head_channels: int,
        context_dim: int,
        vector_dim: int,
    ) -> None:
        super().__init__()
        if len(transformer_depth) != len(channel_mult):
            raise ValueError(
                f"transformer_depth needs one number per level: got {list(transformer_depth)} for "
                f"channel_mult={list(channel_mult)}"
            )
        self.layout = Layout.of(
            model_channels=model_channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks
        )
        self.model_channels = model_channels
        self.downsampling = 2 ** (len(channel_mult) - 1)
        emb = 4 * model_channels
        self.time_embed = _perceptron(model_channels, emb)
        self.label_emb = nn.Sequential(_perceptron(vector_dim, emb))

        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(in_channels, model_channels, 3, padding=1)])]
        )
        channels = model_channels
        for level, (mult, depth) in enumerate(zip(channel_mult, transformer_depth, strict=True)):
            width = model_channels * mult
            for _ in range(num_res_blocks):
                block = [
                    ResBlock(channels, width, emb_channels=emb),
                    *_transformer(width, depth, context_dim, head_channels),
                ]
                self.input_blocks.append(nn.ModuleList(block))
                channels = width
            if level < len(channel_mult) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
        self.middle_block = nn.ModuleList(
            [
                ResBlock(channels, channels, emb_channels=emb),
                *_transformer(channels, transformer_depth[-1], context_dim, head_channels),
                ResBlock(channels, channels, emb_channels=emb),
            ]
        )

    def embed(self, t: Tensor, vector: Tensor) -> Tensor:
        """Embed table index (or c_noise) t (B,) and vector (B, vector_dim) as (B, E)."""
        dtype = next(self.time_embed.parameters()).dtype
        return self.time_embed(
            sinusoidal_embedding(t, self.model_channels).to(dtype)
        ) + self.label_emb(vector.to(dtype))

    def encode(
        self, x: Tensor, emb: Tensor, context: Tensor, hint: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run encoder and middle on x (B, in_channels, h, w); add `hint` to the first feature.

        Returns:
            The middle block's output, and the encoder's outputs in order.
        """
        h = x.to(emb.dtype)
        skips: list[Tensor] = []
        for index, block in enumerate(self.input_blocks):
            h = run_block(block, h, emb, context)
            if index == 0 and hint is not None:
                h = h + hint
            skips.append(h)
        return run_block(self.middle_block, h, emb, context), skips


@register
class UNet(Trunk):
    """The SDXL UNet.

    As released: 320 channels, mult [1, 2, 4], depth [0, 2, 10], 2567.5M parameters.
    """

    def __init__(self, *, out_channels: int, **trunk: Any) -> None:
        super().__init__(**trunk)
        emb = 4 * self.model_channels
        self.output_blocks = nn.ModuleList()
        for plan in self.layout.decoder:
            block: list[nn.Module] = [
                ResBlock(plan.channels + plan.skip_channels, plan.out_channels, emb_channels=emb),
                *_transformer(
                    plan.out_channels,
                    trunk["transformer_depth"][plan.level],
                    trunk["context_dim"],
                    trunk["head_channels"],
                ),
            ]
            if plan.upsamples:
                block.append(Upsample(plan.out_channels))
            self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(
            GroupNorm(32, self.model_channels),
            nn.SiLU(),
            zero_init(nn.Conv2d(self.model_channels, out_channels, 3, padding=1)),
        )

    def decode(
        self, h: Tensor, skips: Sequence[Tensor], emb: Tensor, context: Tensor, join: Join
    ) -> Tensor:
        """Run the decoder on the middle block's output and skips; `join` lets control enter."""
        h = join.middle(h)
        for index, (block, skip) in enumerate(
            zip(self.output_blocks, reversed(skips), strict=True)
        ):
            h = join.skip(h, skip, index)
            for layer in block.children():
                if isinstance(layer, Upsample):
                    h = join.upsample(h, index)
                h = run_layer(layer, h, emb, context)
        return self.out(h)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditioning,
        z_lq: Tensor | None = None,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predict from noisy latents x (B, C, h, w) without control; ignore the last two inputs."""
        emb = self.embed(t, cond.vector)
        context = cond.context.to(emb.dtype)
        h, skips = self.encode(x, emb, context)
        return self.decode(h, skips, emb, context, PlainJoin()).float()


def run_block(block: nn.Module, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """Run the layers of one block, each with the inputs it takes."""
    for layer in block.children():
        h = run_layer(layer, h, emb, context)
    return h


def run_layer(layer: nn.Module, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
    """Call one layer with the inputs its type takes."""
    if isinstance(layer, ResBlock):
        return run_module(layer, h, emb)
    if isinstance(layer, SpatialTransformer):
        return layer(h, context)
    return layer(h)


def _perceptron(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))


def _transformer(
    channels: int, depth: int, context_dim: int, head_channels: int
) -> list[nn.Module]:
    """Return one spatial transformer in a list, or an empty list if `depth` is 0."""
    if depth == 0:
        return []
    return [
        SpatialTransformer(
            channels, context_width=context_dim, depth=depth, head_channels=head_channels
        )
    ]
