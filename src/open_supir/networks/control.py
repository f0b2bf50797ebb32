"""The control adaptor (a trained copy of the UNet's encoder) and the UNet that it controls.

Parameter names are the official ones (`input_hint_block.0`, `project_modules.N`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from open_supir.base.registry import register
from open_supir.networks.conditioner import Conditioning
from open_supir.networks.connectors import Connector
from open_supir.networks.layers import zero_init
from open_supir.networks.unet import Trunk, UNet


@register
class ControlAdaptor(Trunk):
    """A UNet encoder that sees the noisy latent and, through a zero convolution, the LQ latent.

    The paper trims its transformers to half the UNet's depth, the released weights are untrimmed;
    `transformer_depth` decides. It starts as a copy of the UNet's encoder and middle, by name: a
    trimmed adaptor takes the first blocks of each transformer.

    Args:
        sees_text: As released. Without it, the adaptor gets neither caption nor sizes, so its
            features are the same for both halves of classifier-free guidance and computed once.
        trunk: See `Trunk`.
    """

    def __init__(self, *, sees_text: bool = True, **trunk: Any) -> None:
        super().__init__(**trunk)
        self.sees_text = sees_text
        hint = nn.Conv2d(trunk["in_channels"], self.model_channels, 3, padding=1)
        self.input_hint_block = nn.ModuleList([zero_init(hint)])

    def reset_hint(self) -> None:
        """Zero the hint's convolution, on the CPU, so that the LQ latent adds nothing at first."""
        zero_init(self.input_hint_block.to_empty(device="cpu"))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, z_lq: Tensor) -> list[Tensor]:
        """Return the control features in encoder order, the middle block's last.

        Args:
            x: (B, C, h, w) noisy latent, scaled by c_in.
            t: (B,) noise index.
            z_lq: Latent of the degraded image. It may have B / k rows if x and t are k copies in a
                row, as for the two halves of guidance.
        """
        batch = len(x)
        if not self.sees_text:  # the same for all copies
            x, t = x[: len(z_lq)], t[: len(z_lq)]
            vector = torch.zeros_like(cond.vector[:1]).expand(len(x), -1)
            context = torch.zeros_like(cond.context[:1, :1]).expand(len(x), -1, -1)
            cond = Conditioning(context, vector)
        dtype = next(self.input_hint_block.parameters()).dtype
        hint = _repeated(self.input_hint_block[0](z_lq.to(dtype)), len(x))
        emb = self.embed(t, cond.vector)
        middle, features = self.encode(x, emb, cond.context.to(emb.dtype), hint)
        return [_repeated(feature, batch) for feature in (*features, middle)]


class ControlledUNet(nn.Module):
    """A frozen UNet steered by a control adaptor through a connector."""

    def __init__(self, unet: UNet, control: ControlAdaptor, connector: Connector) -> None:
        super().__init__()
        if connector.layout != unet.layout or control.layout != unet.layout:
            raise ValueError(
                "unet, control and connector must share model_channels, channel_mult and "
                "num_res_blocks: "
                f"encoder widths are {unet.layout.skip_channels}, {control.layout.skip_channels} "
                f"and {connector.layout.skip_channels}"
            )
        self.unet = unet.requires_grad_(False)
        self.trains_unet = False  # True gives its encoder a graph, for added layers
        self.control = control
        self.connector = connector

    @property
    def downsampling(self) -> int:
        """The number that a latent's sides must be multiples of."""
        return self.unet.downsampling

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditioning,
        z_lq: Tensor,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predict from noisy latents x (B, C, h, w), steered by z_lq (B, C, h, w).

        Args:
            x: Noisy latent, scaled by c_in.
            t: (B,) noise index.
            z_lq: Latent of the degraded image; it may have fewer rows, see `ControlAdaptor`.
            control_scale: 0 for the UNet alone, 1 for full control.
        """
        features = self.control(x, t, cond, z_lq)
        # control enters at the middle block's output, so the frozen encoder needs no graph
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_unet):
            emb = self.unet.embed(t, cond.vector)
            context = cond.context.to(emb.dtype)
            h, skips = self.unet.encode(x, emb, context)
        return self.unet.decode(
            h, skips, emb, context, self.connector.bind(features, control_scale)
        ).float()


def _repeated(features: Tensor, rows: int) -> Tensor:
    return features if len(features) == rows else features.repeat(rows // len(features), 1, 1, 1)
