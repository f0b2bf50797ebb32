"""Building blocks of the SDXL UNet and its control adaptor.

Attribute names are the official parameter names (`in_layers`, `emb_layers`, `to_out`), so that
released weights load by prefix. Shapes: B batch, C channels, h w latent size at the block's level,
N = h * w tokens, E embedding width.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Module = TypeVar("Module", bound=nn.Module)


def zero_init(module: Module) -> Module:
    """Set every parameter to zero, so that the module's branch adds nothing at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoidal_embedding(values: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Embed scalars (B,) as (B, width): cosines, then sines, as SDXL was trained."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def run_module(module: nn.Module, *inputs: object) -> Tensor:
    """Call a module.

    One marked by `checkpoint_activations` keeps only its inputs and is rerun in the backward pass.
    """
    if getattr(module, "is_checkpointed", False) and torch.is_grad_enabled():
        # no layer here draws random numbers, so no state needs restoring
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
    return module(*inputs)


def is_autocast(x: Tensor) -> bool:
    """Say whether autocast is on for the device of `x`; never for meta tensors."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class GroupNorm(nn.GroupNorm):
    """Group norm in its input's dtype, even under autocast.

    Autocast runs norms in float32 and so keeps a float32 copy of every input for the gradients,
    more than a tenth of all activations. The kernels accumulate in float32 anyway.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise (B, C, h, w)."""
        if not is_autocast(x):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer norm in its input's dtype, even under autocast; see `GroupNorm`."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise (..., C)."""
        if not is_autocast(x):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class ResBlock(nn.Module):
    """Two convolutions with the noise-level embedding added between them; residual."""

    def __init__(self, in_channels: int, out_channels: int, *, emb_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(32, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the official layout's dropout, unused by SDXL
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (B, C, h, w) and emb (B, E) to (B, C_out, h, w)."""
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Multi-head attention of `x` over `context`, or over itself without one."""

    def __init__(self, width: int, *, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C) to (B, N, C); context is (B, M, context_width)."""
        context = x if context is None else context
        q, k, v = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.heads)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))


class GatedGELU(nn.Module):
    """Linear map with its first half gated by the GELU of its second half (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to (B, N, inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated two-layer perceptron with an inner width of 4 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # the Identity is the official layout's dropout
        self.net = nn.Sequential(
            GatedGELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) to (B, N, C)."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention over the text, feed-forward; each pre-normed and residual."""

    def __init__(self, width: int, *, context_width: int, heads: int) -> None:
        super().__init__()
        self.attn1 = Attention(width, context_width=width, heads=heads)
        self.attn2 = Attention(width, context_width=context_width, heads=heads)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map tokens (B, N, C) with text context (B, 77, context_width) to (B, N, C)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map; residual."""

    def __init__(
        self, channels: int, *, context_width: int, depth: int, head_channels: int
    ) -> None:
        super().__init__()
        heads = channels // head_channels
        self.norm = GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_width=context_width, heads=heads)
            for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map (B, C, h, w) with context (B, 77, context_width) to (B, C, h, w)."""
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.transformer_blocks:
            tokens = run_module(block, tokens, context)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Halve both sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, ceil(h / 2), ceil(w / 2))."""
        return self.op(x)


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
