"""The first stage: SDXL's autoencoder, and the robust encoder for degraded images.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, z, h, w) with h = H / 2 ** (levels - 1).
Outside this module, latents are always scaled by `scale_factor`. Parameter names are the official
ones.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from open_supir.base.registry import register
from open_supir.networks.layers import GroupNorm, run_module, zero_init

SDXL_LATENT_SCALE = 0.13025
MAX_VALUES = 2**31 - 1  # of one tensor: beyond, kernels with 32-bit indices fail
MANY_TOKENS = 4096  # from here on, attention copies its inputs to save memory


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's posterior, unscaled: mean and log-variance, each (B, z, h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """Split (B, 2z, h, w) into mean and log-variance, the latter clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def sample(self, noise: Tensor) -> Tensor:
        """Return a sample, given standard normal noise of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Return the divergence from the standard normal, averaged over elements."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).mean()


class ResnetBlock(nn.Module):
    """Two convolutions, each after a norm; residual."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(groups, out_channels)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over pixels; residual."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = _norm(groups, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        zero_init(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        return x + self.attend(self.norm(x))

    def attend(self, normed: Tensor) -> Tensor:
        """Return the residual to add to the input, from the normed input (B, C, h, w)."""
        out = F.scaled_dot_product_attention(  # its inputs are freed with the call
            self._tokens(self.q(normed)), self._tokens(self.k(normed)), self._tokens(self.v(normed))
        )
        return self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=normed.shape[2]))

    @staticmethod
    def _tokens(x: Tensor) -> Tensor:
        tokens = rearrange(x, "b c h w -> b 1 (h w) c")
        # many strided ones would hold every pair of pixels at once
        return tokens.contiguous() if tokens.shape[2] >= MANY_TOKENS else tokens


class Resampling(nn.Module):
    """The convolution that changes resolution, under its official name."""

    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        stride, padding = (2, 0) if down else (1, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=padding)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """Halve or double both sides of (B, C, h, w)."""
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one level, then its change of resolution, if any."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, *, groups: int, then: str | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * depth
        self.block = nn.ModuleList(
            ResnetBlock(before, after, groups=groups) for before, after in pairwise(widths)
        )
        self.downsample = Resampling(out_channels, down=True) if then == "down" else None
        self.upsample = Resampling(out_channels, down=False) if then == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C_out, h', w')."""
        for block in self.block:
            x = run_module(block, x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups=groups)
        self.attn_1 = AttnBlock(channels, groups=groups)
        self.block_2 = ResnetBlock(channels, channels, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        return run_module(self.block_2, self.attn_1(run_module(self.block_1, x)))


class Encoder(nn.Module):
    """Image -> moments before quant_conv.

    Without gradients, a batch whose largest tensor would have more than `MAX_VALUES` values goes
    through in parts.
    """

    def __init__(
        self, *, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, groups: int
    ) -> None:
        super().__init__()
        widths = [ch] + [ch * mult for mult in ch_mult]
        last = len(ch_mult) - 1
        self.widest = max(widths[:2])  # at full resolution
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[level],
                widths[level + 1],
                num_res_blocks,
                groups=groups,
                then="down" if level < last else None,
            )
            for level in range(len(ch_mult))
        )
        self.mid = Middle(widths[-1], groups=groups)
        self.norm_out = _norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 2z, h, w)."""
        height, width = image.shape[-2:]
        most = max(1, MAX_VALUES // (self.widest * (height + 1) * (width + 1)))  # padded by one
        if len(image) <= most or torch.is_grad_enabled():
            return self._moments(image)
        parts = image.chunk(math.ceil(len(image) / most))
        return torch.cat([self._moments(part) for part in parts])

    def _moments(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent after post_quant_conv -> image."""

    def __init__(
        self, *, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, groups: int
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups=groups)
        self.up = nn.ModuleList(  # official numbering: level 0 is the finest and runs last
            Level(
                widths[min(level + 1, len(widths) - 1)],
                widths[level],
                num_res_blocks + 1,
                groups=groups,
                then="up" if level > 0 else None,
            )
            for level in range(len(widths))
        )
        self.norm_out = _norm(groups, ch * ch_mult[0])
        self.conv_out = nn.Conv2d(ch * ch_mult[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, z, h, w) to (B, 3, H, W)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


@register
class AutoencoderKL(nn.Module):
    """SDXL's autoencoder.

    Args:
        ch: Width of the finest level; 128 in SDXL.
        ch_mult: Width of each level in units of `ch`; [1, 2, 4, 4] in SDXL (8x down).
        num_res_blocks: Residual blocks per encoder level; the decoder has one more.
        z_channels: Latent channels; 4 in SDXL.
        scale_factor: Factor on latents that gives them a variance of about one; 0.13025 in SDXL.
        groups: Groups of every norm; 32 in SDXL. 0 omits the norms: tiny, narrow networks learn
            faster without, since a norm hides each image's mean and contrast.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        scale_factor: float,
        groups: int = 32,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = dict(
            ch=ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            groups=groups,
        )
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.scale_factor = scale_factor
        self.downsampling = 2 ** (len(ch_mult) - 1)

    def posterior(self, image: Tensor) -> DiagonalGaussian:
        """Encode images (B, 3, H, W) as an unscaled posterior."""
        return DiagonalGaussian.from_moments(
            self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))
        )

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode images (B, 3, H, W) as scaled latents (B, z, h, w): mean, or draw if `noise`."""
        posterior = self.posterior(image)
        z = posterior.mean if noise is None else posterior.sample(noise)
        return self.scale_factor * z.float()

    def decode(self, z: Tensor) -> Tensor:
        """Decode scaled latents (B, z, h, w) to images (B, 3, H, W), about [-1, 1], not clamped."""
        z = z.to(self.quant_conv.weight.dtype) / self.scale_factor
        return self.decoder(self.post_quant_conv(z)).float()


class RobustEncoder(nn.Module):
    """A copy of the autoencoder's encoder, trained on degraded images; its quant_conv is frozen."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = deepcopy(vae.encoder)
        self.quant_conv = deepcopy(vae.quant_conv).requires_grad_(False)
        self.scale_factor = vae.scale_factor

    def forward(self, image: Tensor) -> Tensor:
        """Encode degraded images (B, 3, H, W) to scaled latents (B, z, h, w), the mean."""
        moments = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype)))
        return self.scale_factor * DiagonalGaussian.from_moments(moments).mean.float()


def _norm(groups: int, channels: int) -> nn.Module:
    return GroupNorm(groups, channels, eps=1e-6) if groups else nn.Identity()
