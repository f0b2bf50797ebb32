"""The filter's measurements: sharpness, flatness, exposure, colour, perceptual hash.

Shapes: H W image size. Luma is BT.601 full range, 8 bit.
"""

import imagehash
import numpy as np
from einops import rearrange
from PIL import Image

PATCH = 240  # pixels: LucidFlux's patches for flatness
FLAT_SOBEL = 800.0  # a patch with a lower gradient variance is flat, as in LucidFlux
SHADOW, HIGHLIGHT = 8, 247  # luma at or beyond these is crushed or burnt out
TILE = 64  # pixels: of the tiles that `focus` looks at
SHARPEST = 0.01  # share of the tiles that must be sharp
HASH_SIDE = 32


def measure(pixels: np.ndarray) -> dict[str, float]:
    """Return the scores of an (H, W, 3) uint8 image by name.

    sharpness is the variance of the 3x3 Laplacian (LucidFlux keeps 150 to 8000 at 1024 pixels),
    focus that variance where the image is sharpest, whatever the background, flat the share of
    240x240 patches with little gradient, dark and bright the shares of crushed and burnt-out
    pixels, luma and contrast the mean and standard deviation of luma, colour the mean difference
    between the largest and smallest channel, in [0, 1].
    """
    picture = Image.fromarray(pixels)
    luma = np.asarray(picture.convert("L"))
    levels = np.bincount(luma.ravel(), minlength=256) / luma.size
    mean = float(levels @ np.arange(256))
    small = np.asarray(picture.reduce(max(1, min(picture.size) // 64)), dtype=np.int16)
    wide = luma.astype(np.int16)
    edges = laplacian(wide)
    return {
        "sharpness": _variance(edges),
        "focus": focus(edges),
        "flat": flat_share(wide),
        "dark": float(levels[: SHADOW + 1].sum()),
        "bright": float(levels[HIGHLIGHT:].sum()),
        "luma": mean,
        "contrast": float(np.sqrt(levels @ (np.arange(256) - mean) ** 2)),
        "colour": float((small.max(axis=2) - small.min(axis=2)).mean() / 255),
    }


def laplacian(luma: np.ndarray) -> np.ndarray:
    """Return the 3x3 Laplacian of (H, W) int16 luma, without padding: (H - 2, W - 2) int16.

    It is a single 0 for an image of fewer than three rows or columns.
    """
    if min(luma.shape) < 3:
        return np.zeros((1, 1), dtype=np.int16)
    edges = 4 * luma[1:-1, 1:-1]
    for neighbour in (luma[:-2, 1:-1], luma[2:, 1:-1], luma[1:-1, :-2], luma[1:-1, 2:]):
        edges -= neighbour
    return edges


def focus(edges: np.ndarray, *, tile: int = TILE, share: float = SHARPEST) -> float:
    """Return the variance of a Laplacian (h, w) in the tile that `share` of all tiles exceed.

    Tiles of `tile` x `tile` pixels cover it from the top left; a shorter side limits the tile. A
    sharp subject before a soft background has a high value, a blurred photograph has not.
    """
    high, wide = (min(tile, side) for side in edges.shape)
    rows, columns = edges.shape[0] // high, edges.shape[1] // wide
    cut = edges[: rows * high, : columns * wide].astype(np.float32)
    tiles = rearrange(cut, "(r h) (c w) -> (r c) (h w)", h=high, w=wide)
    return float(np.quantile(tiles.var(axis=1), 1 - share))


def flat_share(luma: np.ndarray) -> float:
    """Return the share of patches whose Sobel magnitude has a variance below FLAT_SOBEL.

    Patches of side PATCH tile (H, W) int16 luma from the top left; a shorter side limits the patch.
    """
    height, width = luma.shape
    if min(height, width) < 3:
        return 1.0
    down, right = min(PATCH, height), min(PATCH, width)
    flat = [
        _variance(sobel(luma[top : top + down, left : left + right])) < FLAT_SOBEL
        for top in range(0, height - down + 1, down)
        for left in range(0, width - right + 1, right)
    ]
    return float(np.mean(flat))


def sobel(luma: np.ndarray) -> np.ndarray:
    """Return the Sobel gradient's magnitude of (h, w) int16 luma: (h - 2, w - 2) float32."""
    rows = luma[:-2] + 2 * luma[1:-1] + luma[2:]
    columns = luma[:, :-2] + 2 * luma[:, 1:-1] + luma[:, 2:]
    across = (rows[:, 2:] - rows[:, :-2]).astype(np.float32)
    along = (columns[2:] - columns[:-2]).astype(np.float32)
    return np.sqrt(across * across + along * along)


def _variance(values: np.ndarray) -> float:
    flat = values.astype(np.float32).ravel()
    mean = float(flat.mean(dtype=np.float64))
    flat -= mean
    return float(flat @ flat) / flat.size


def perceptual_hash(picture: Image.Image) -> int:
    """Return a 64-bit hash (pHash) that nearly equal pictures share up to a few bits."""
    small = picture.convert("L").resize(  # as imagehash would, at a third of its time
        (HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0
    )
    return int(np.packbits(imagehash.phash(small).hash).view(">u8")[0])
