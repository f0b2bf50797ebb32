"""A frozen CLIP ConvNeXt that gives features of several depths; open_clip's model and weights."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of images in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
STAGES = 3


class ConvNeXtFeatures(nn.Module):
    """The image tower of a CLIP ConvNeXt without its last stage's map."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", torch.tensor(MEAN)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[None, :, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of the first three stages and the embedding (B, C) of images.

        Args:
            image: (B, 3, H, W) in [-1, 1]; sides are multiples of 32.
        """
        trunk, h = self.visual.trunk, ((image + 1) / 2 - self.mean) / self.std  # type: ignore[operator]
        h = trunk.stem(h)  # type: ignore[operator]
        found = []
        for stage in trunk.stages:  # type: ignore[union-attr]
            h = stage(h)
            found.append(h)
        pooled = self.visual.head(trunk.forward_head(trunk.norm_pre(h)))  # type: ignore[operator]
        return [*found[:STAGES], pooled]


def frozen_convnext(name: str, weights: str | None) -> ConvNeXtFeatures:
    """Return the image tower of open_clip's model `name`, frozen.

    Args:
        weights: A file of open_clip's, e.g. of convnext_xxlarge (LAION-2B); None: random.

    Raises:
        FileNotFoundError: There is no such file.
    """
    import open_clip

    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(
            f"discriminator.weights={weights}: no such file; it needs open_clip's weights of "
            f"{name}, or take discriminator=prior, which needs none"
        )
    model = open_clip.create_model(name, pretrained=weights, require_pretrained=weights is not None)
    return ConvNeXtFeatures(cast(nn.Module, model.visual)).requires_grad_(False).eval()
