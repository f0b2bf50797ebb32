"""Group norms of a tile with the statistics of the whole image, without waiting for the device.

Shapes: B images, C channels, G groups, h w size of a tile.
"""

import torch
from torch import Tensor, nn

from open_supir.networks.tile_spans import Span

Core = tuple[Span, Span]  # rows, columns


class Gathered(Exception):
    """Stops a tile's run through the chain at the norm whose statistics are being gathered."""


class TiledNorm(nn.Module):
    """A group norm that first gathers statistics, then applies them to every tile.

    As built it is the plain norm. With `core` set it notes the statistics of a tile's own share and
    raises `Gathered`, until `finish`. With `is_model` set it keeps the statistics of its next input
    for all further ones.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.core: Core | None = None
        self.is_model = False
        self.found: list[tuple[int, Tensor, Tensor]] = []  # count, mean, variance (B, G) by tile
        self.scale: Tensor | None = None
        self.shift: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w), or gather from it and raise `Gathered`."""
        if self.scale is None and self.is_model:
            self._note(x)
            self.finish()
        if self.scale is not None and self.shift is not None:
            # of low precision are input and output, not scale and shift
            return torch.addcmul(self.shift, x, self.scale, out=torch.empty_like(x))
        if self.core is None:  # a single tile covers the canvas
            return self.norm(x)
        self._note(self._own_share(x, self.core))
        raise Gathered

    @staticmethod
    def _own_share(x: Tensor, core: Core) -> Tensor:
        rows, columns = (s.own_share(side) for s, side in zip(core, x.shape[-2:], strict=True))
        return x[..., rows, columns]

    def _note(self, x: Tensor) -> None:
        groups = x.float().reshape(len(x), self.norm.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=-1, correction=0)
        self.found.append((groups.shape[-1], mean, variance))

    def finish(self) -> None:
        """Turn the statistics into one scale and shift per channel."""
        total = sum(count for count, _, _ in self.found)
        mean = torch.stack([count / total * mean for count, mean, _ in self.found]).sum(dim=0)
        variance = torch.stack(
            [count / total * (own + (at - mean) ** 2) for count, at, own in self.found]
        ).sum(dim=0)
        deviation = self._by_channel((variance + self.norm.eps).sqrt())
        scale = self.norm.weight.float() / deviation
        shift = self.norm.bias.float() - self._by_channel(mean) * scale
        self.scale, self.shift = scale[..., None, None], shift[..., None, None]

    def _by_channel(self, values: Tensor) -> Tensor:
        """Map (B, G) to (B, C)."""
        each = self.norm.num_channels // self.norm.num_groups
        return values[..., None].expand(-1, -1, each).flatten(1)


def replace_norms(module: nn.Module) -> list[TiledNorm]:
    """Replace every group norm below `module`; return the new ones in order of execution."""
    norms: list[TiledNorm] = []
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            norm = TiledNorm(child)
            setattr(module, name, norm)
            norms.append(norm)
        else:
            norms += replace_norms(child)
    return norms
