"""A photograph's colours in its own profile, and results converted back to it.

Shapes: H W image size; C is 1 for a profile of grey, else 3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from open_supir.base.images.colour import Intent, from_srgb, is_foreign
from open_supir.base.images.tensors import resize

ROWS = 256  # converted at a time


@dataclass(frozen=True)
class OwnColours:
    """A file's pixels in its profile, beside what was made of them.

    Attributes:
        icc: The profile; of another space than sRGB.
        colour: (H, W, C) uint8 or uint16, upright.
        rgb: (3, H, W) the same in sRGB, in [0, 1].
        intent: Of the conversion, which `rgb` was made by too.
    """

    icc: bytes
    colour: np.ndarray
    rgb: Tensor
    intent: Intent = "perceptual"

    @staticmethod
    def found(
        icc: bytes | None, colour: np.ndarray, rgb: Tensor, intent: Intent
    ) -> "OwnColours | str | None":
        """Return a file's own colours; None of sRGB; a note if a profile has no way back."""
        if not icc or not is_foreign(icc):
            return None
        try:
            from_srgb(np.zeros((1, 1, colour.shape[-1]), np.uint16), icc)
        except ValueError:
            return "the result is in sRGB: the file's profile is not one to write with"
        return OwnColours(icc, colour, rgb, intent)

    def of(self, rgb: Tensor) -> Tensor:
        """Convert a result (3, h, w) in [0, 1] to the profile: (C, h, w) in [0, 1].

        What sRGB could not hold of the input, such as colours outside of its gamut, is put back:
        a result that equals the input's sRGB comes back as the file's own values.
        """
        full = np.iinfo(self.colour.dtype).max
        own = torch.from_numpy(np.moveaxis(self.colour, -1, 0).astype(np.float32) / full)
        lost = own - self._converted(self.rgb)
        return (self._converted(rgb) + resize(lost, (rgb.shape[-2], rgb.shape[-1]))).clamp_(0, 1)

    def _converted(self, rgb: Tensor) -> Tensor:
        channels = self.colour.shape[-1]
        out = torch.empty(channels, *rgb.shape[-2:])
        for start in range(0, rgb.shape[-2], ROWS):
            part = rgb[:channels, start : start + ROWS].cpu().float()
            levels = (part * 65535).round().clamp(0, 65535).numpy().astype(np.uint16)
            made = from_srgb(np.moveaxis(levels, 0, -1), self.icc, self.intent) / 65535
            out[:, start : start + ROWS] = torch.from_numpy(
                np.moveaxis(made, -1, 0).astype(np.float32)
            )
        return out
