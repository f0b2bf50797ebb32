"""Connectors: how the control adaptor's features enter the UNet's middle and decoder.

A connector owns the trained joints. `bind` returns the `Join` of one call; nothing is stored on the
module, so both halves of classifier-free guidance can share the features. Joints are numbered as in
the released weights (`project_modules.N`): from the last decoder block to the first, the middle
block last.

Shapes: B batch; features is the adaptor's list in encoder order, middle last; c is one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from open_supir.base.registry import register
from open_supir.networks.layers import Attention, GroupNorm, run_module, zero_init
from open_supir.networks.unet import Join, Layout, PlainJoin

SFT_HIDDEN = 128  # channels between a control feature and its gain and bias, as released


class ZeroSFT(nn.Module):
    """Spatial feature transform of the joined features by the control feature.

    Replaces the skip concatenation: `out = scale * (norm(x) * (1 + gain) + bias) + (1 - scale) *
    raw`. Its zero convolutions make gain, bias and the added control zero at the start, but it is
    not the identity then, because the norm remains.
    Source: SUPIR (arXiv:2401.13627), figure 4; layout and names of the released weights.
    """

    def __init__(
        self,
        control_channels: int,
        skip_channels: int,
        decoder_channels: int = 0,
        *,
        hidden: int = SFT_HIDDEN,
    ) -> None:
        if hidden < 1:
            raise ValueError(f"connector.hidden must be at least 1 channel, got {hidden}")
        super().__init__()
        joined = skip_channels + decoder_channels
        self.param_free_norm = GroupNorm(32, joined)  # affine despite its name, as released
        self.mlp_shared = nn.Sequential(
            nn.Conv2d(control_channels, hidden, 3, padding=1), nn.SiLU()
        )
        self.zero_mul = zero_init(nn.Conv2d(hidden, joined, 3, padding=1))
        self.zero_add = zero_init(nn.Conv2d(hidden, joined, 3, padding=1))
        self.zero_conv = zero_init(nn.Conv2d(control_channels, skip_channels, 1))

    def forward(
        self, c: Tensor, skip: Tensor, h: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        """Join control c, skip and, if given, decoder feature h, all (B, *, h, w)."""
        controlled = skip + self.zero_conv(c)
        if h is None:
            raw, x = skip, controlled
        else:
            raw, x = torch.cat([h, skip], dim=1), torch.cat([h, controlled], dim=1)
        hidden = self.mlp_shared(c)
        out = self.param_free_norm(x) * (1 + self.zero_mul(hidden)) + self.zero_add(hidden)
        return out if scale == 1.0 else scale * out + (1 - scale) * raw


class ZeroCrossAttention(nn.Module):
    """Attention of a UNet feature over the control feature of its level; residual.

    Despite the released name, its output is not zero at the start, unless `zero` is set.
    """

    def __init__(
        self, channels: int, control_channels: int, *, head_channels: int, zero: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(32, channels)
        self.norm2 = GroupNorm(32, control_channels)
        self.attn = Attention(
            channels, context_width=control_channels, heads=channels // head_channels
        )
        if zero:
            zero_init(self.attn.to_out)

    def forward(self, h: Tensor, c: Tensor, scale: float = 1.0) -> Tensor:
        """Map h (B, C, h, w) and c (B, C_control, h, w) to (B, C, h, w)."""
        tokens, context = (
            rearrange(normed, "b c h w -> b (h w) c") for normed in (self.norm1(h), self.norm2(c))
        )
        out = self.attn(tokens, context)
        return h + scale * rearrange(out, "b (h w) c -> b c h w", h=h.shape[2])


class Connector(nn.Module):
    """Base class: the numbers from which every connector derives its joints.

    Args:
        model_channels, channel_mult, num_res_blocks: The UNet's; they determine all widths.
        head_channels: Channels of one attention head, for connectors with attention.
    """

    def __init__(
        self,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        head_channels: int,
    ) -> None:
        super().__init__()
        self.layout = Layout.of(
            model_channels=model_channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks
        )
        self.head_channels = head_channels
        self.project_modules = nn.ModuleList()

    def bind(self, features: Sequence[Tensor], scale: float) -> Join:
        """Return the join of one call; `scale` 0 means the UNet alone, 1 full control."""
        raise TypeError(f"{type(self).__name__} must define bind")


@register
class PlainConnector(Connector):
    """No control: the UNet alone, as a baseline."""

    def bind(self, features: Sequence[Tensor], scale: float) -> Join:
        """Return a join that ignores the features."""
        return _IgnoringJoin(features) if torch.is_grad_enabled() else PlainJoin()


@dataclass(frozen=True)
class _IgnoringJoin(PlainJoin):
    """Adds a feature with weight zero, because training needs a gradient, even a zero one."""

    features: Sequence[Tensor]

    def middle(self, h: Tensor) -> Tensor:
        return h + 0 * self.features[-1].mean()


@register
class ResidualConnector(Connector):
    """ControlNet's zero convolutions, added to skips and middle; the identity at first.

    Source: Zhang et al. 2023 (arXiv:2302.05543).
    """

    def __init__(self, **unet: Any) -> None:
        super().__init__(**unet)
        widths = [plan.skip_channels for plan in reversed(self.layout.decoder)] + [
            self.layout.middle_channels
        ]
        self.project_modules.extend(zero_init(nn.Conv2d(width, width, 1)) for width in widths)

    def bind(self, features: Sequence[Tensor], scale: float) -> Join:
        """Return the join of one call."""
        return _ResidualJoin(self.project_modules, features, scale)


@register
class CrossAttentionConnector(Connector):
    """Skips and middle attend over the control features; the identity at first."""

    def __init__(self, **unet: Any) -> None:
        super().__init__(**unet)
        widths = [plan.skip_channels for plan in reversed(self.layout.decoder)] + [
            self.layout.middle_channels
        ]
        self.project_modules.extend(
            ZeroCrossAttention(width, width, head_channels=self.head_channels, zero=True)
            for width in widths
        )

    def bind(self, features: Sequence[Tensor], scale: float) -> Join:
        """Return the join of one call."""
        return _CrossAttentionJoin(self.project_modules, features, scale)


@register
class ZeroSFTConnector(Connector):
    """SUPIR's connector: ZeroSFT at the middle and every skip, and optional cross-attention.

    Args:
        cross_attention: Also attend before every upsampling, as released (10 ZeroSFT and 2
            cross-attentions at full size) but not in the paper.
        hidden: Channels between a control feature and its gain and bias.
    """

    def __init__(self, *, cross_attention: bool, hidden: int = SFT_HIDDEN, **unet: Any) -> None:
        super().__init__(**unet)
        self.skip_modules: list[int] = []  # position in project_modules, by decoder block
        self.upsample_modules: dict[int, int] = {}
        for index in reversed(range(len(self.layout.decoder))):
            plan = self.layout.decoder[index]
            if plan.upsamples and cross_attention:
                self.upsample_modules[index] = len(self.project_modules)
                self.project_modules.append(
                    ZeroCrossAttention(
                        plan.out_channels, plan.skip_channels, head_channels=self.head_channels
                    )
                )
            self.skip_modules.insert(0, len(self.project_modules))
            self.project_modules.append(
                ZeroSFT(plan.skip_channels, plan.skip_channels, plan.channels, hidden=hidden)
            )
        middle = self.layout.middle_channels
        self.project_modules.append(ZeroSFT(middle, middle, hidden=hidden))

    def bind(self, features: Sequence[Tensor], scale: float) -> Join:
        """Return the join of one call."""
        return _ZeroSFTJoin(self, features, scale)


@dataclass(frozen=True)
class _ResidualJoin(PlainJoin):
    modules: nn.ModuleList
    features: Sequence[Tensor]
    scale: float

    def middle(self, h: Tensor) -> Tensor:
        return h + self.scale * self.modules[-1](self.features[-1])

    def skip(self, h: Tensor, skip: Tensor, index: int) -> Tensor:
        c = self.features[-2 - index]
        return torch.cat([h, skip + self.scale * self.modules[-2 - index](c)], dim=1)


@dataclass(frozen=True)
class _CrossAttentionJoin(PlainJoin):
    modules: nn.ModuleList
    features: Sequence[Tensor]
    scale: float

    def middle(self, h: Tensor) -> Tensor:
        return run_module(self.modules[-1], h, self.features[-1], self.scale)

    def skip(self, h: Tensor, skip: Tensor, index: int) -> Tensor:
        c = self.features[-2 - index]
        attended = run_module(self.modules[-2 - index], skip, c, self.scale)
        return torch.cat([h, attended], dim=1)


@dataclass(frozen=True)
class _ZeroSFTJoin:
    connector: ZeroSFTConnector
    features: Sequence[Tensor]
    scale: float

    def middle(self, h: Tensor) -> Tensor:
        module = self.connector.project_modules[-1]
        return run_module(module, self.features[-1], h, None, self.scale)

    def skip(self, h: Tensor, skip: Tensor, index: int) -> Tensor:
        module = self.connector.project_modules[self.connector.skip_modules[index]]
        return run_module(module, self.features[-2 - index], skip, h, self.scale)

    def upsample(self, h: Tensor, index: int) -> Tensor:
        if index not in self.connector.upsample_modules:
            return h
        module = self.connector.project_modules[self.connector.upsample_modules[index]]
        return run_module(module, h, self.features[-2 - index], self.scale)
