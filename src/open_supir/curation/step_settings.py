"""What the steps with work of their own can be told: cheap to make and to compare.

Neither these nor the steps import what does the work, so that finished work is recognised within a
second, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from open_supir.curation.thresholds import MEASURES
from open_supir.curation.work import Blueprint

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """How candidates are normalised, cut to the stored size, and measured."""

    size: int = 1024  # shorter side of what is stored, in pixels
    # what becomes of larger images: `resize` reduces them to `size`, `tiles` cuts squares of `size`
    # at native resolution, `keep` stores them as they are
    large: str = "resize"
    max_tiles: int = 4  # maximum number of tiles per image, spread evenly
    min_side: int = 1024  # candidates with a shorter side are refused before they are decoded
    max_pixels: int = 100_000_000  # so are those with more pixels
    quality: int = 95  # of the JPEG, without chroma subsampling, where an image is encoded anew
    keep_keys: bool = False  # keep the keys of tars
    # note source, licence, original size and what was normalised in each sample; else a tar's own
    # json is kept unchanged
    record: bool = True

    def __post_init__(self) -> None:
        if self.large not in ("resize", "tiles", "keep"):
            raise ValueError(f"filter.large must be resize, tiles or keep, got {self.large!r}")
        if not 1 <= self.size <= self.min_side:
            raise ValueError(
                f"filter.size must be 1 to filter.min_side: images are never enlarged, got "
                f"{self.size} and {self.min_side}"
            )
        if not 1 <= self.quality <= 100 or self.max_tiles < 1:
            raise ValueError(
                "filter.quality must be 1 to 100 and filter.max_tiles at least 1, got "
                f"{self.quality} and {self.max_tiles}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        return asdict(self)

    def fit(self, picture: Image.Image) -> Iterator[tuple[str, Image.Image]]:
        """Yield what is stored of an upright image, each with the name of its tile, if any."""
        short = min(picture.size)
        if self.large == "keep" or (short == self.size and self.large == "resize"):
            yield "", picture
        elif self.large == "resize":
            scale = self.size / short
            width, height = (max(self.size, round(side * scale)) for side in picture.size)
            yield "", picture.resize((width, height), _lanczos(), reducing_gap=3.0)
        else:
            for top, left in tile_corners(
                picture.height, picture.width, size=self.size, most=self.max_tiles
            ):
                box = (left, top, left + self.size, top + self.size)
                yield f"y{top}x{left}", picture.crop(box)


def _lanczos() -> Any:
    from PIL import Image

    return Image.Resampling.LANCZOS


def tile_corners(height: int, width: int, *, size: int, most: int) -> list[tuple[int, int]]:
    """Return the corners (top, left) of squares that do not overlap, spread evenly, at most `most`.

    As many rows and columns as fit; where that is more than `most`, every second, third ... of them
    in reading order.
    """
    rows, columns = height // size, width // size

    def spread(count: int, length: int) -> list[int]:
        free = length - count * size
        return [number * size + free * (number + 1) // (count + 1) for number in range(count)]

    corners = [(y, x) for y in spread(rows, height) for x in spread(columns, width)]
    stride = math.ceil(len(corners) / most)
    return corners[::stride] if corners else []


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Which metrics without a reference score the images that pass the thresholds so far."""

    metrics: tuple[str, ...]  # names of the scores, which become columns
    scorer: Blueprint  # builds a function (1, 3, H, W) in [0, 1] -> value a metric

    def __post_init__(self) -> None:
        hidden = sorted(set(self.metrics) & set(MEASURES))
        if hidden:
            raise ValueError(f"score.metrics: {', '.join(hidden)} are measured by the filter")

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        return {"metrics": list(self.metrics), "scorer": dict(self.scorer.about)}


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """How the kept images are captioned."""

    # builds a captioner of inference; None keeps the existing captions
    captioner: Blueprint | None
    cache: str  # folder that caches answers by image, model and question
    quadrants: bool = False  # caption the four quarters too, for crops that show one of them
    keep_existing: bool = False  # do not ask about images that came with a caption
    concurrency: int = 1  # questions at a time in each worker; above 1 for servers only
    attempts: int = 3  # attempts per question

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1:
            raise ValueError(
                "caption.concurrency and caption.attempts must be at least 1, got "
                f"{self.concurrency} and {self.attempts}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        about = None if self.captioner is None else dict(self.captioner.about)
        return {
            "captioner": about,
            "quadrants": self.quadrants,
            "keep_existing": self.keep_existing,
        }


@dataclass(frozen=True, kw_only=True)
class NegativeSettings:
    """How negative samples are made: image-to-image from positives, with the negative words as
    prompt.
    """

    prior: Blueprint  # builds the text-to-image prior (open_supir.inference.prior)
    words: str  # the prompt, and the caption of the result
    strength: float = 0.5  # share of the sampling steps that are taken; SUPIR takes 0.5
    seed: int = 0  # seeds each sample's noise, together with its key
    quality: int = 95  # of the JPEG

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or not self.words.strip():
            raise ValueError(
                "negatives needs 0 < strength <= 1 and words, got "
                f"{self.strength} and {self.words!r}"
            )

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        return {**vars(self), "prior": dict(self.prior.about)}
