"""A perceptual distance without further weights: features of the prior's own encoder."""

import torch
from torch import Tensor, nn

from open_supir.networks import AutoencoderKL

FLOOR = 1e-6  # of a feature's squared length


class EncoderDistance(nn.Module):
    """Distance of the frozen encoder's feature maps, each normalised over its channels.

    As LPIPS (arXiv:1801.03924) without learned weights: for each depth, squared differences of unit
    vectors, averaged over pixels; summed over depths.

    Args:
        vae: Its encoder is used, and kept out of the state.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self._encoder = [vae.encoder]  # in a list, so that it is no second owner of the weights

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the distances (B,) of images (B, 3, H, W) in [-1, 1]."""
        with torch.no_grad():
            wanted = self.features(reference)
        pairs = zip(self.features(image), wanted, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]).sum(
            dim=0
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """Return unit feature vectors (B, C, h, w) after the first convolution and each level."""
        encoder = self._encoder[0]
        h = encoder.conv_in(image.to(encoder.conv_in.weight.dtype))
        found = [h]
        for level in encoder.down:
            h = level(h)
            found.append(h)
        return [_unit(feature) for feature in found]


def _unit(feature: Tensor) -> Tensor:
    feature = feature.float()
    return feature * (feature.square().sum(dim=1, keepdim=True) + FLOOR).rsqrt()
