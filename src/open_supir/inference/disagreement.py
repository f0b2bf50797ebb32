"""Disagreement: where samples of one photograph differ, their detail was invented."""

import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from open_supir.base.images.tensors import to_uint8

LEAST_SAMPLES = 3  # two say too little about a pixel
STRONG = 24.0  # levels of disagreement that an overlay paints with its full opacity
OPACITY, RED = 0.8, (0.88, 0.11, 0.28)
WINDOW = 7  # side in pixels over which the variance is averaged; three samples make it noisy


def disagreement(samples: Sequence[Tensor]) -> Tensor:
    """Return how much samples differ at each pixel, in 8-bit levels.

    It is their standard deviation, root mean square over the channels and a small neighbourhood.

    Args:
        samples: Three or more images (3, H, W) or (1, 3, H, W) in [0, 1] of one photograph.

    Returns:
        (H, W) float32, 0 and above.

    Raises:
        ValueError: There are too few samples.
    """
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(f"expected {LEAST_SAMPLES} samples or more, got {len(samples)}")
    images = [sample.reshape(3, *sample.shape[-2:]) for sample in samples]
    variance = torch.stack(images).float().var(dim=0).mean(dim=0)
    smooth = F.avg_pool2d(
        variance[None], WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False
    )
    return 255 * smooth[0].sqrt()


def encode_map(levels: Tensor) -> bytes:
    """Return a disagreement map (H, W) as an 8-bit grey PNG: each value is a number of levels."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(levels[None] / 255)[0].cpu().numpy()).save(file, "png")
    return file.getvalue()


def overlay(image: Tensor, levels: Tensor) -> Tensor:
    """Paint an image (3, H, W) in [0, 1] red where its samples disagree, by `levels` (H, W)."""
    opacity = OPACITY * (levels / STRONG).clamp(0, 1)
    return torch.lerp(image, image.new_tensor(RED).view(3, 1, 1).expand_as(image), opacity)
