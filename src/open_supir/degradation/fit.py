"""Find the ranges of a degradation whose images are distributed as given photographs.

JPEG quality is read from each file. For the rest, clean pictures are degraded with known
parameters; a small network learns to read these back from statistics; ranges are sought whose
images have the statistics and readings of the photographs; and once more with images drawn near
these ranges. The search is repeated with photographs and simulated images drawn again with
replacement: the medians are the result, and the spread says how certain each end is.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from open_supir.base.registry import register
from open_supir.base.rng import keyed_rng
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.fit_bank import (
    NO_QUALITY,
    Bank,
    Reader,
    degrade,
    joined,
    measure_all,
    simulate,
)
from open_supir.degradation.fit_crops import CleanPictures, Photographs
from open_supir.degradation.fit_ranges import SEARCHED, WIDEST, Range, Ranges
from open_supir.degradation.fit_search import Distance, search, widened
from open_supir.degradation.statistics import NAMES

log = logging.getLogger(__name__)

FEWEST = 8  # photographs
_STREAMS = 100  # seeds that one fit uses
_WIDER = 1.5
_FITTED = (*SEARCHED, "gaussian_prob", "gray_prob")
_AGAIN = 25  # generations of a search that begins near


@register
@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How much a fit computes."""

    images: int = 2000  # simulated for each of three steps
    resamples: int = 20  # of the photographs, for the uncertainty of the ranges' ends
    compared: int = 300  # images that the distances before and after are measured on
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 100), ("resamples", 2), ("compared", 20)):
            if getattr(self, name) < least:
                raise ValueError(f"fit.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result: ranges, and how much they are worth."""

    ranges: Ranges
    # (2, 2) by range: 5 and 95 % of the low end, and of the high end, over resampled photographs
    ends: dict[str, np.ndarray]
    shares: dict[str, Range]  # the same of gaussian_prob, gray_prob, jpeg_prob
    skill: dict[str, float]  # share of a quantity's variance that one image shows, near the fit


def fit_ranges(photographs: Photographs, clean: CleanPictures, settings: FitSettings) -> Fit:
    """Fit ranges to photographs.

    Raises:
        ValueError: There are too few photographs.
    """
    count = len(photographs.crops)
    if count < FEWEST:
        raise ValueError(f"{count} photographs; a distribution needs at least {FEWEST}, better 60")
    seed, qualities = settings.seed * _STREAMS, photographs.quality.numpy()
    jpeg, jpeg_prob = jpeg_range(qualities)
    given = measure_all(photographs.crops, photographs.quality)
    prior = Ranges(**(vars(WIDEST) | {"jpeg": jpeg, "jpeg_prob": jpeg_prob}))

    def bank(number: int, ranges: Ranges) -> Bank:
        hq = clean.crops(settings.images, seed=seed + number)
        return simulate(hq, ranges, seed=seed + number)

    def near(reader: Reader, simulated: Bank) -> Distance:
        columns = len(NAMES)
        return Distance(
            simulated, reader(simulated.measured), simulated.measured[:, :columns],
            reader(given), given[:, :columns], seed=seed,
        )  # fmt: skip

    known = {"jpeg": jpeg, "jpeg_prob": jpeg_prob}
    log.info("1/4: %d images over the widest ranges", 2 * settings.images)
    learned, wide = bank(0, prior), bank(1, prior)
    distance = near(Reader(learned, seed=seed), wide)
    rough = search(distance, **known, seed=seed)
    log.info("2/4: %d images near the first result", settings.images)
    close = bank(2, widened(rough, prior, factor=_WIDER))
    reader = Reader(joined(learned, wide), seed=seed + 1)
    distance = near(reader, close)
    best = search(distance, **known, seed=seed + 1, start=rough)
    log.info("3/4: %d searches with resampled photographs", settings.resamples)
    rng, again = keyed_rng("fit resamples", seed), []
    for number in range(settings.resamples):
        drawn = rng.integers(count, size=count)
        distance.resample(drawn, rng)
        jpeg, jpeg_prob = jpeg_range(qualities[drawn])
        known = {"jpeg": jpeg, "jpeg_prob": jpeg_prob}
        again.append(search(distance, **known, seed=seed + number, start=best, rounds=_AGAIN))
    middle = {name: np.median([getattr(r, name) for r in again], axis=0) for name in _FITTED}
    found: dict[str, Any] = {
        k: tuple(v.tolist()) if v.ndim else float(v) for k, v in middle.items()
    }
    jpeg, jpeg_prob = jpeg_range(qualities)
    return Fit(
        ranges=Ranges(**found, jpeg=jpeg, jpeg_prob=jpeg_prob).rounded(),
        ends={name: _spread(again, name) for name in (*SEARCHED, "jpeg")},
        shares={
            name: tuple(_spread(again, name).tolist())
            for name in ("gaussian_prob", "gray_prob", "jpeg_prob")
        },
        skill=reader.skill(close),
    )


def _spread(again: list[Ranges], name: str) -> np.ndarray:
    return np.quantile([getattr(ranges, name) for ranges in again], [0.05, 0.95], axis=0).T


def jpeg_range(quality: np.ndarray) -> tuple[Range, float]:
    """Return the range of qualities that were found, and the share of JPEGs.

    The ends are those of the uniform distribution with the same 5 and 95 % quantiles, so that a
    few odd files do not matter.
    """
    found = quality[quality < NO_QUALITY]
    if len(found) == 0:
        return (90.0, 95.0), 0.0
    low, high = np.quantile(found, [0.05, 0.95])
    beyond = (high - low) / 18
    ends = float(np.clip(low - beyond, 1, 100)), float(np.clip(high + beyond, 1, 100))
    return ends, len(found) / len(quality)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Images of a degradation beside photographs, statistic by statistic."""

    crops: Tensor  # (N, 3, S, S) uint8 of the degradation
    values: np.ndarray  # (N, len(NAMES)) of them
    distance: np.ndarray  # (len(NAMES),) of Wasserstein, in the photographs' standard deviations
    p: np.ndarray  # (len(NAMES),) of the two-sample Kolmogorov-Smirnov test


def compare(
    config: DegradationConfig, photographs: Photographs, clean: CleanPictures, settings: FitSettings
) -> Comparison:
    """Degrade clean pictures anew and compare their statistics with the photographs'."""
    from scipy.stats import ks_2samp, wasserstein_distance  # late: takes a second to import

    seed = (settings.seed + 1) * _STREAMS - 1
    crops, quality = degrade(config, clean.crops(settings.compared, seed=seed), seed=seed)
    values = measure_all(crops, quality)[:, : len(NAMES)]
    given = measure_all(photographs.crops, photographs.quality)[:, : len(NAMES)]
    scale = given.std(0) + 1e-6
    pairs = list(zip(values.T, given.T, strict=True))
    return Comparison(
        crops=crops,
        values=values,
        distance=np.array([wasserstein_distance(a, b) for a, b in pairs]) / scale,
        p=np.array([ks_2samp(a, b)[1] for a, b in pairs]),
    )
