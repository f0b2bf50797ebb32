"""What a fit looks at: one detailed crop of each photograph, and many of clean pictures.

Shapes: S side of a crop.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.images import read_image, resize
from open_supir.base.images.jpeg_quality import jpeg_quality
from open_supir.base.images.read import read_file_pixels
from open_supir.base.rng import keyed_rng
from open_supir.degradation.fit_bank import NO_QUALITY
from open_supir.degradation.jpeg_traces import last_quality
from open_supir.degradation.statistics import SMALLEST

log = logging.getLogger(__name__)

MOST_REDUCED = 4.0  # of clean pictures: their own blur and noise become small
_TRIES = 4  # places of which the most detailed is taken
_SEEN = 512  # pixels a side in which traces of JPEG are looked for
_GRID = 8  # crops of photographs begin at a block of their JPEG


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """The photographs whose degradation is sought, as crops at their own size."""

    names: list[str]
    crops: Tensor  # (M, 3, S, S) uint8
    quality: Tensor  # (M,) of the last JPEG; NO_QUALITY where there is no trace of one
    sources: Counter[str]  # where the qualities come from
    skipped: Counter[str]  # what was left out, by reason


def read_photographs(
    paths: Sequence[Path], *, side: int, seed: int, max_pixels: int
) -> Photographs:
    """Take a crop of each photograph; a bad or small one is logged, counted and left out.

    Raises:
        ValueError: None is left, or `side` is too small to measure.
    """
    if side < SMALLEST:
        raise ValueError(f"side={side}: crops need at least {SMALLEST} pixels a side")
    names, crops, quality = [], [], []
    sources: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for path in paths:
        try:
            pixels = read_file_pixels(path, max_pixels)
        except (ValueError, OSError) as error:
            skipped["cannot be read"] += 1
            log.warning("left out: %s: %s", path, error)
            continue
        image = torch.from_numpy(pixels.over_white().copy()).permute(2, 0, 1)
        if min(image.shape[1:]) < side:
            skipped[f"smaller than {side} pixels"] += 1
            log.warning("left out: %s: %dx%d pixels, fewer than %d a side; set side=",
                        path, image.shape[2], image.shape[1], side)  # fmt: skip
            continue
        rng = keyed_rng("fit crop", seed, path.name)
        crop = _detailed(image, side, rng, grid=_GRID)
        if pixels.jpeg_tables:
            known, source = jpeg_quality(pixels.jpeg_tables), "quantisation tables of the file"
        else:
            found = last_quality(image[:, :_SEEN, :_SEEN] / 255)
            known, source = found or NO_QUALITY, "pixels" if found else "no JPEG, or none visible"
        sources[source] += 1
        names.append(path.name)
        crops.append(crop)
        quality.append(known)
    if not crops:
        said = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise ValueError(f"no photograph to fit to; left out of {len(paths)}: {said}")
    return Photographs(
        names=names, crops=torch.stack(crops), quality=torch.tensor(quality), sources=sources,
        skipped=skipped,
    )  # fmt: skip


class CleanPictures:
    """Clean pictures, of which crops are drawn at several reductions.

    Raises:
        ValueError: None can be read, or none has `side` pixels a side.
    """

    def __init__(self, paths: Sequence[Path], *, side: int, max_pixels: int) -> None:
        self.side, self.pictures = side, []
        for path in paths:
            try:
                picture = read_image(path, max_pixels=max_pixels)
            except (ValueError, OSError) as error:
                log.warning("clean picture left out: %s", error)
                continue
            if min(picture.shape[1:]) >= side:
                self.pictures.append(picture)
        if not self.pictures:
            raise ValueError(f"clean: no picture of at least {side} pixels a side")

    def crops(self, count: int, *, seed: int) -> Tensor:
        """Return (count, 3, S, S) uint8, in turn from each picture."""
        rng, found = keyed_rng("fit clean", seed), []
        for number in range(count):
            picture = self.pictures[number % len(self.pictures)]
            short = min(picture.shape[1:])
            ends = min(short, 2 * self.side), min(short, MOST_REDUCED * self.side)
            side = int(np.exp(rng.uniform(*np.log(ends))))
            crop = resize(_detailed(picture, side, rng), (self.side, self.side))
            found.append(crop.flip(-1) if rng.random() < 0.5 else crop)
        return torch.stack(found)


def _detailed(image: Tensor, side: int, rng: np.random.Generator, *, grid: int = 1) -> Tensor:
    """Return the most detailed of a few random crops: sky and blur say little."""
    best, most = image[:, :side, :side], -1.0
    for _ in range(_TRIES):
        top, left = (int(rng.integers(0, s - side + 1)) // grid * grid for s in image.shape[1:])
        crop = image[:, top : top + side, left : left + side]
        small = F.avg_pool2d(crop[1:2].float(), max(1, side // 32))[0]  # noise hardly counts
        detail = float(small.diff(dim=0).abs().mean() + small.diff(dim=1).abs().mean())
        if detail > most:
            best, most = crop, detail
    return best
