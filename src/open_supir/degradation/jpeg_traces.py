"""Find the quality of the last JPEG in pixels: coefficients are multiples of its table's steps.

Shapes: N blocks of 8 x 8, Q qualities. A photograph that was saved as PNG after a JPEG, or decoded
and never resized, still shows the table exactly.
"""

import torch
from torch import Tensor

from open_supir.degradation.jpeg import dct_matrix, jpeg_tables

QUALITIES = tuple(range(10, 96))  # above, steps of 1 drown in the rounding of pixels
_SPREAD = 0.34  # standard deviation of a coefficient by rounding red, green and blue
_STRAY = 0.05  # share of coefficients off the lattice, by the rounding of chroma
_LEAST = 0.1  # nats per coefficient by which a lattice must beat no lattice
_FEWEST = 30  # nonzero coefficients


def last_quality(image: Tensor) -> float | None:
    """Return the libjpeg quality whose table fits the luma of (3, H, W) in [0, 1], or None.

    The block grid must start at the top left. Blocks with clipped pixels are left out, and so are
    coefficients near zero, which fit every table. Each has a likelihood under the lattice of each
    table, mixed with a share of strays; the best table must beat the hypothesis of no lattice.
    """
    height, width = (side // 8 * 8 for side in image.shape[-2:])
    luma = torch.tensordot(image.new_tensor([0.299, 0.587, 0.114]), image, 1)[:height, :width]
    blocks = (luma * 255 - 128).unfold(0, 8, 8).unfold(1, 8, 8)
    dct = dct_matrix(image.device)
    coefficients = (dct @ blocks @ dct.T).flatten(0, 1).flatten(1)[:, 1:]  # (N, 63), without DC
    clipped = ((image <= 0) | (image >= 1)).any(0)[:height, :width]
    whole = ~clipped.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).any(-1).flatten()
    which, position = ((coefficients.abs() > 1.5) & whole[:, None]).nonzero(as_tuple=True)
    if len(which) < _FEWEST:
        return None
    values = coefficients[which, position]
    qualities = torch.tensor(QUALITIES, dtype=torch.float32, device=image.device)
    steps = jpeg_tables(qualities)[:, 0, 1:][:, position]  # (Q, coefficients)
    off = values - steps * (values / steps).round()
    # Density relative to no lattice, where the remainder is uniform over a step.
    lattice = steps / (_SPREAD * (2 * torch.pi) ** 0.5) * (-(off / _SPREAD).square() / 2).exp()
    gain = (_STRAY + (1 - _STRAY) * lattice).log().mean(1)
    best = int(gain.argmax())
    return float(QUALITIES[best]) if gain[best] > _LEAST else None
