"""How far two pictures of one scene lie apart, by phase correlation.

Source: Kuglin and Hines, The phase correlation image alignment method (1975).

Shapes: H W image size.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

WINDOW = 512  # pixels: side of the central window that is compared, at most
CUTOFF = 0.15  # cycles per pixel; above it blur and noise of a low-quality image leave no phase


class Offset(NamedTuple):
    """Displacement of the second picture in pixels, and how sharp the correlation's peak is.

    `peak` is 1 for displaced copies, and about 0 for pictures of different things.
    """

    down: float
    right: float
    peak: float

    @property
    def distance(self) -> float:
        """Length of the displacement in pixels."""
        return float(np.hypot(self.down, self.right))


def measure_offset(first: Tensor, second: Tensor) -> Offset:
    """Measure where `second` lies relative to `first`, both (3, H, W) of the same size.

    The central window is compared, to a fraction of a pixel; rotation and zoom show as a low peak.
    """
    one, two = (np.fft.fft2(_window(image)) for image in (first, second))
    cross = two * one.conj()
    rows, columns = (np.fft.fftfreq(side) for side in cross.shape)
    band = np.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * (CUTOFF / 2) ** 2))
    band[0, 0] = 0  # brightness says nothing about place
    surface = np.fft.ifft2(band * cross / np.maximum(np.abs(cross), 1e-12)).real
    surface *= surface.size / band.sum()
    top = np.unravel_index(int(surface.argmax()), surface.shape)
    down, right = (_vertex(surface, top, axis) for axis in (0, 1))
    return Offset(down, right, float(surface[top]))


def _window(image: Tensor) -> np.ndarray:
    """Return the tapered luma of the centre."""
    side_y, side_x = (min(side, WINDOW) for side in image.shape[-2:])
    top, left = (image.shape[-2] - side_y) // 2, (image.shape[-1] - side_x) // 2
    luma = image[:, top : top + side_y, left : left + side_x].numpy().astype(np.float64).mean(0)
    return (luma - luma.mean()) * np.outer(np.hanning(side_y), np.hanning(side_x))


def _vertex(surface: np.ndarray, top: tuple[np.intp, ...], axis: int) -> float:
    """Return the signed place of the peak on an axis, by a parabola through it."""
    line = np.take(surface, top[1 - axis], axis=1 - axis)
    place, side = int(top[axis]), len(line)
    before, here, after = line[place - 1], line[place], line[(place + 1) % side]
    curve = before - 2 * here + after
    place = place - side if place > side // 2 else place
    return place + (0.5 * (before - after) / curve if curve else 0.0)
