"""ConstantPrompts: text features of captions that come again and again are made once."""

from collections.abc import Iterable

import torch
from torch import Tensor

from open_supir.networks import Conditioner
from open_supir.networks.conditioner import Conditioning


class ConstantPrompts:
    """A conditioner's features of some prompts, kept on the device; other captions are encoded.

    In training these are the negative samples' words and the empty caption of dropped ones. The
    conditioner must be frozen. Features of a prompt do not depend on its batch but for rounding.

    Args:
        prompts: The captions to keep.
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self.prompts = tuple(dict.fromkeys(prompts))
        self._kept: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def encode(self, conditioner: Conditioner, captions: list[str], sizes: Tensor) -> Conditioning:
        """Return what `conditioner(captions, sizes)` does."""
        if not set(captions) & set(self.prompts):
            return conditioner(captions, sizes)
        if self._kept is None or self._kept[0].device != sizes.device:
            self._kept = conditioner.encode(list(self.prompts), sizes.device)
        others = [caption for caption in captions if caption not in self.prompts]
        names = [*self.prompts, *others]
        features = self._kept
        if others:
            fresh = conditioner.encode(others, sizes.device)
            features = tuple(torch.cat(pair) for pair in zip(features, fresh, strict=True))
        rows = torch.tensor([names.index(caption) for caption in captions], device=sizes.device)
        context, pooled = (feature[rows] for feature in features)
        return conditioner.with_sizes(context, pooled, sizes)
