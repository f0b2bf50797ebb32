"""Dead-leaves images: occluding shapes with power-law sizes, photographic colours and textures.

Like photographs, they have scale invariance, occlusion edges and heavy-tailed gradients (Lee,
Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001), and networks trained on them
transfer to photographs (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021,
arXiv:2106.05963).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Rng = np.random.Generator
OVERSAMPLE = 2  # images are drawn at twice their size and averaged, for smooth edges


@dataclass(frozen=True, kw_only=True)
class DeadLeaves:
    """Draws dead-leaves images in the colours of photographs.

    `palettes` are (N, 3) float32 colours in [0, 1], one array per photograph; `textures` are (S, S)
    float32 fields with zero mean and unit deviation, with S at least twice the image size.
    """

    size: int
    palettes: Sequence[np.ndarray]
    textures: Sequence[np.ndarray]

    def draw(self, rng: Rng) -> tuple[np.ndarray, str]:
        """Draw one image; returns (size, size, 3) uint8 and a caption."""
        side = self.size * OVERSAMPLE
        smallest = OVERSAMPLE * float(np.exp(rng.uniform(np.log(1.5), np.log(8))))
        shapes = str(rng.choice(["round", "angular", "mixed"]))
        leaves = draw_shapes(rng, side, smallest, shapes)
        palette = self.palettes[int(rng.integers(len(self.palettes)))]
        image = self.paint(rng, leaves, palette)
        small = image.reshape(self.size, OVERSAMPLE, self.size, OVERSAMPLE, 3).mean((1, 3))
        pixels = np.rint(small.clip(0, 1) * 255).astype(np.uint8)
        grain = "small" if smallest < 2.5 * OVERSAMPLE else "large"
        words = {"round": "discs", "angular": "tiles", "mixed": "shapes"}[shapes]
        colours = " and ".join(colour_names(pixels))
        return pixels, f"An abstract pattern of {grain} overlapping {words} in {colours}."

    def paint(self, rng: Rng, leaves: "Leaves", palette: np.ndarray) -> np.ndarray:
        """Colour each leaf with a gradient between palette colours and one of four textures."""
        count, side = len(leaves.radius), len(leaves.owner)
        first = palette[rng.integers(len(palette), size=count)]
        second = palette[rng.integers(len(palette), size=count)]
        slope = 0.5 * rng.random((count, 1), dtype=np.float32) * (second - first)
        angle = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
        strength = (0.12 * rng.random(count, dtype=np.float32) ** 2).astype(np.float32)
        strength[rng.random(count) < 0.3] = 0
        chosen = rng.integers(len(self.textures), size=4)
        stack = np.stack([_window(rng, self.textures[i], side) for i in chosen])

        owner = leaves.owner
        rows, columns = np.ogrid[:side, :side]
        across = np.cos(angle) / leaves.radius
        along = np.sin(angle) / leaves.radius
        shift = leaves.x * across + leaves.y * along
        t = columns * across[owner] + rows * along[owner] - shift[owner]
        texture = stack[rng.integers(4, size=count)[owner], rows, columns]
        light = texture * strength[owner]
        return first[owner] + t[..., None] * slope[owner] + light[..., None]


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """The topmost leaf at each pixel, and the centre and radius of each leaf."""

    owner: np.ndarray  # (S, S) int
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def draw_shapes(rng: Rng, side: int, smallest: float, shapes: str) -> Leaves:
    """Drop shapes with radius density r^-3 onto a plane until it is covered about three times.

    Leaf 0 is the background, as wide as the image.
    """
    largest = side / 2
    mean_area = 2 * np.pi * smallest**2 * np.log(largest / smallest)
    count = int(np.clip(3 * (side + 2 * smallest) ** 2 / mean_area, 40, 2500))
    # Inverse of the cumulative distribution of r^-3 between the two bounds.
    low, high = smallest**-2, largest**-2
    radius = (low - rng.random(count) * (low - high)) ** -0.5
    x, y = rng.uniform(0, side, count), rng.uniform(0, side, count)
    turn = rng.uniform(0, np.pi, count)
    ratio = np.ones(count) if shapes == "round" else rng.uniform(0.4, 1, count)
    angular = {"round": 0.0, "angular": 1.0, "mixed": 0.4}[shapes]
    is_box = rng.random(count) < angular
    owner = np.zeros((side, side), dtype=np.int32)
    span = np.arange(side, dtype=np.float32)
    cos, sin = np.cos(turn), np.sin(turn)
    for leaf in range(count):
        reach = radius[leaf] * (1.4143 if is_box[leaf] else 1)
        left, right = max(0, int(x[leaf] - reach)), min(side, int(x[leaf] + reach) + 2)
        top, bottom = max(0, int(y[leaf] - reach)), min(side, int(y[leaf] + reach) + 2)
        dx = span[left:right] - x[leaf]
        dy = (span[top:bottom] - y[leaf])[:, None]
        u = (dx * cos[leaf] + dy * sin[leaf]) / radius[leaf]
        v = (dy * cos[leaf] - dx * sin[leaf]) / (radius[leaf] * ratio[leaf])
        inside = np.maximum(abs(u), abs(v)) < 1 if is_box[leaf] else u * u + v * v < 1
        owner[top:bottom, left:right][inside] = leaf + 1
    ground = np.array([side / 2], dtype=np.float32)
    return Leaves(
        owner=owner,
        x=np.concatenate([ground, x.astype(np.float32)]),
        y=np.concatenate([ground, y.astype(np.float32)]),
        radius=np.concatenate([2 * ground, radius.astype(np.float32)]),
    )


def noise_texture(rng: Rng, size: int, slope: float) -> np.ndarray:
    """Return a (size, size) field with amplitude frequency^-slope, zero mean, unit deviation."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    return normalised(np.fft.irfft2(spectrum * frequency**-slope, s=(size, size)))


def photo_texture(image: Image.Image, size: int) -> np.ndarray:
    """Return a photograph's fine detail as a (size, size) field, zero mean, unit deviation."""
    grey = np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS), np.float32)
    spectrum = np.fft.rfft2(grey)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    return normalised(np.fft.irfft2(spectrum * (frequency > 6 / size), s=(size, size)))


def normalised(field: np.ndarray) -> np.ndarray:
    """Shift and scale a field to zero mean and unit deviation, clipped at three deviations."""
    return ((field - field.mean()) / (field.std() + 1e-6)).clip(-3, 3).astype(np.float32)


def _window(rng: Rng, texture: np.ndarray, side: int) -> np.ndarray:
    """Cut a random window out of a texture, and rotate and mirror it at random."""
    top, left = rng.integers(texture.shape[0] - side + 1), rng.integers(texture.shape[1] - side + 1)
    window = np.rot90(texture[top : top + side, left : left + side], int(rng.integers(4)))
    return window[:, ::-1] if rng.random() < 0.5 else window


COLOURS = {
    "red": (0.7, 0.15, 0.12),
    "orange": (0.85, 0.45, 0.15),
    "yellow": (0.85, 0.8, 0.3),
    "green": (0.25, 0.5, 0.2),
    "blue": (0.2, 0.3, 0.65),
    "purple": (0.45, 0.25, 0.5),
    "brown": (0.42, 0.27, 0.16),
    "beige": (0.82, 0.74, 0.62),
    "white": (0.93, 0.93, 0.93),
    "grey": (0.5, 0.5, 0.5),
    "black": (0.07, 0.07, 0.07),
}


def colour_names(pixels: np.ndarray, count: int = 2) -> list[str]:
    """Name the most frequent colours of an (H, W, 3) uint8 image."""
    table = np.array(list(COLOURS.values()), dtype=np.float32)
    sample = pixels[::4, ::4].reshape(-1, 1, 3).astype(np.float32) / 255
    nearest = np.square(sample - table).sum(-1).argmin(-1)
    frequent = np.argsort(-np.bincount(nearest, minlength=len(table)), kind="stable")[:count]
    return [list(COLOURS)[i] for i in frequent]
