"""Discriminators: frozen features of a picture or its latent, and trained heads that judge them.

Shapes: B batch, H W crop, h w latent size. A discriminator's logits are a list with one tensor a
level, (B, 1, h', w') or (B, 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from open_supir.diffusion import TableNoise
from open_supir.diffusion.denoiser import append_dims
from open_supir.diffusion.schedule import nearest_index
from open_supir.diffusion.training_noise import seeded_randn
from open_supir.networks import UNet
from open_supir.networks.conditioner import Conditioning
from open_supir.networks.convnext import frozen_convnext
from open_supir.networks.unet import Layout
from open_supir.training.adapters import without_adapters

LEVEL_STREAM = 11  # of the noise that the prior's features are taken at; see training_noise
FEATURE_STREAM = 12


class Seen(NamedTuple):
    """What a discriminator may look at."""

    image: Tensor  # (B, 3, H, W), about [-1, 1]
    z: Tensor  # (B, C, h, w) its latent, scaled
    cond: Conditioning
    seeds: Tensor  # (B,) of the samples
    unet: UNet  # the frozen prior


class Blur(nn.Module):
    """Blurs each channel with the binomial kernel [1, 2, 1], so that striding does not alias."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Blur (B, C, h, w)."""
        kernel: Tensor = self.kernel  # type: ignore[assignment]
        return F.conv2d(h, kernel.expand(h.shape[1], -1, -1, -1), padding=1, groups=h.shape[1])


def spatial_head(channels: int, width: int) -> nn.Sequential:
    """Return the head of a feature map: two blurred, strided, spectrally normed convolutions."""
    return nn.Sequential(
        Blur(),
        spectral_norm(nn.Conv2d(channels, width, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        Blur(),
        spectral_norm(nn.Conv2d(width, 1, 1, stride=2)),
    )


def pooled_head(channels: int, width: int) -> nn.Sequential:
    """Return the head of a feature vector: two spectrally normed linear layers."""
    return nn.Sequential(
        spectral_norm(nn.Linear(channels, width)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Linear(width, 1)),
    )


class Heads(nn.ModuleList):
    """One head a feature."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of each feature, computed in float32."""
        return [head(feature.float()) for head, feature in zip(self, features, strict=True)]


class Discriminator(nn.Module):
    """Base class: `heads` are trained; `features` come from frozen networks.

    Attributes:
        sees_latent: Whether `features` looks at the latent; clean images are encoded only if so.
    """

    sees_latent = False
    heads: Heads

    def features(self, seen: Seen) -> list[Tensor]:
        """Return one feature a head, with a graph to what is seen."""
        raise NotImplementedError

    def forward(self, seen: Seen, *, is_frozen: bool = False) -> list[Tensor]:
        """Return the logits of each head; with `is_frozen`, the heads are not in the graph."""
        features = self.features(seen)
        with torch.autocast(features[0].device.type, enabled=False):
            if not is_frozen:
                return self.heads(features)
            fixed = {name: p.detach() for name, p in self.heads.named_parameters()}
            return functional_call(self.heads, fixed, (features,))


class PriorDiscriminator(Discriminator):
    """Judges the frozen UNet's encoder and middle features of the noised latent.

    Needs no further weights. (As in diffusion-GAN distillation, e.g. DMD2, arXiv:2405.14867.)

    Args:
        model_channels, channel_mult, num_res_blocks: The UNet's; they determine all widths.
        width: Channels inside a head.
        noise: Distribution of the level that features are taken at.
    """

    sees_latent = True

    def __init__(
        self,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        width: int,
        noise: TableNoise,
    ) -> None:
        super().__init__()
        layout = Layout.of(
            model_channels=model_channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks
        )
        # the last block of each level: position 0 is the first convolution, a copy follows a level
        blocks, levels = num_res_blocks, len(channel_mult)
        self.picked = [level * (blocks + 1) + blocks for level in range(levels)]
        widths = [layout.skip_channels[i] for i in self.picked] + [layout.middle_channels]
        self.heads = Heads(spatial_head(channels, width) for channels in widths)
        self.noise = noise

    def features(self, seen: Seen) -> list[Tensor]:
        """Return the last feature of each level of the encoder, and the middle's."""
        sigma = self.noise.sample(seen.seeds, seen.z.device, stream=LEVEL_STREAM)
        noise = seeded_randn(seen.seeds, seen.z.shape, FEATURE_STREAM, seen.z.device)
        c_in = append_dims((sigma**2 + 1).rsqrt(), seen.z.ndim)
        x = c_in * (seen.z + append_dims(sigma, seen.z.ndim) * noise)
        with without_adapters(seen.unet):
            emb = seen.unet.embed(nearest_index(sigma), seen.cond.vector)
            middle, skips = seen.unet.encode(x, emb, seen.cond.context.to(emb.dtype))
        return [*(skips[i] for i in self.picked), middle]


class ConvNeXtDiscriminator(Discriminator):
    """Judges features of a frozen CLIP ConvNeXt: its first three stages and the pooled embedding.

    Source: HYPIR (arXiv:2507.20590).

    Args:
        weights: File of open_clip's weights; None leaves them random, for counting and tests.
        name: open_clip's name of the model.
        channels: Widths of the three stages, and of the embedding.
        width: Channels inside a head.
    """

    def __init__(
        self, *, weights: str | None, name: str, channels: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.backbone = frozen_convnext(name, weights)
        *stages, pooled = channels
        heads = [spatial_head(stage, width) for stage in stages]
        self.heads = Heads([*heads, pooled_head(pooled, width)])

    def features(self, seen: Seen) -> list[Tensor]:
        """Return the features of three stages, and the pooled embedding."""
        return self.backbone(seen.image)


def judged(logits: Sequence[Tensor], target: float) -> Tensor:
    """Return BCE(D_l(x), target) of each sample (B,), summed over the levels l."""
    levels = [
        F.binary_cross_entropy_with_logits(level, torch.full_like(level, target), reduction="none")
        for level in logits
    ]
    return torch.stack([level.flatten(1).mean(dim=1) for level in levels]).sum(dim=0)
