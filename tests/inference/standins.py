"""Small modules with the faces of the real networks, whose results are known in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_supir.diffusion.schedule import index_to_sigma
from open_supir.networks import Conditioning

FACTOR = 4  # pixels a latent pixel


class StandInVae(nn.Module):
    """Latent: colour averaged over 4x4 pixels, and their mean as a fourth channel."""

    downsampling = FACTOR

    def __init__(self) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.encoded = 0

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        self.encoded += 1
        return _average(image)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(z[:, :3], scale_factor=FACTOR, mode="nearest")


class StandInRobustEncoder(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return _average(image)


def _average(image: Tensor) -> Tensor:
    z = F.avg_pool2d(image, FACTOR)
    return torch.cat([z, z.mean(dim=1, keepdim=True)], dim=1)


class StandInConditioner(nn.Module):
    """Remembers what it is asked; its vector holds the sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[str], list[list[float]]]] = []

    def forward(self, captions: list[str], sizes: Tensor) -> Conditioning:
        self.calls.append((captions, sizes.tolist()))
        return Conditioning(torch.zeros(len(captions), 77, 8), sizes.clone())


class StandInNetwork(nn.Module):
    """Knows that the clean latent is z_lq: predicts exactly the noise in x."""

    downsampling = 2

    def __init__(self) -> None:
        super().__init__()
        self.sizes_seen: set[tuple[int, ...]] = set()

    def forward(self, x, t, cond, z_lq=None, control_scale=1.0) -> Tensor:
        self.sizes_seen.add(tuple(x.shape[-2:]))
        s = index_to_sigma(t)[:, None, None, None]
        noisy = x * (s**2 + 1).sqrt()
        if z_lq is None:
            return noisy / s
        clean = z_lq.repeat(len(x) // len(z_lq), 1, 1, 1)  # once for both halves of guidance
        return (noisy - control_scale * clean) / s
