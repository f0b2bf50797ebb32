"""Find the ranges of a degradation whose images are distributed as given photographs.

JPEG quality is read from each file. For the rest, clean pictures are degraded with known
parameters, sets of the results are drawn as random presets would draw them, and a network learns to
read a preset's ends, with intervals, from a set. It does so twice: over all presets, then over
those that the first intervals, made wider, leave (truncated sequential estimation as in Deistler et
al. 2022, which keeps intervals calibrated: the prior is only cut).
"""

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from open_supir.base.registry import register
from open_supir.base.rng import keyed_rng
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.fit_bank import (
    NO_QUALITY,
    Bank,
    degrade,
    joined,
    measure_all,
    simulate,
)
from open_supir.degradation.fit_crops import CleanPictures, Photographs
from open_supir.degradation.fit_network import FOLDS, Estimate, estimate
from open_supir.degradation.fit_ranges import SEARCHED, WIDEST, Range, Ranges
from open_supir.degradation.fit_sets import SHARES, UNKNOWNS, Prior, ranges_of
from open_supir.degradation.statistics import NAMES

log = logging.getLogger(__name__)

FEWEST = 8  # photographs
MOST = 100  # photographs in a set; of more, so many are taken
TOLD = 0.75  # an interval wider than this share of what is possible at all tells little
UNTOLD = "cannot be told"
_STREAMS = 100  # seeds that one fit uses
_MARGIN = 0.25  # of the first interval's width, by which it is wider on either side
_DRAWS = 500  # of sets of qualities


@register
@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How much a fit computes."""

    images: int = 3500  # simulated for each of two rounds
    sets: int = 3000  # drawn from them, for each of three networks
    compared: int = 300  # images that the distances before and after are measured on
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 100), ("sets", 100), ("compared", 20)):
            if getattr(self, name) < least:
                raise ValueError(f"fit.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result: ranges, and how much they are worth."""

    ranges: Ranges  # medians
    ends: dict[str, np.ndarray]  # (2, 2) by range: 90 % interval of the low end, and of the high
    shares: dict[str, Range]  # the same of gaussian_prob, gray_prob, jpeg_prob
    coverage: dict[str, float]  # by UNKNOWNS: share of test sets whose interval held the truth
    untold: tuple[str, ...]  # of UNKNOWNS: the photographs hardly narrow what is possible


def fit_ranges(photographs: Photographs, clean: CleanPictures, settings: FitSettings) -> Fit:
    """Fit ranges to photographs.

    Raises:
        ValueError: There are too few photographs, or too few clean pictures.
    """
    count, pictures = len(photographs.crops), len(clean.pictures)
    if count < FEWEST:
        raise ValueError(f"{count} photographs; a distribution needs at least {FEWEST}, better 60")
    if pictures < FOLDS:
        raise ValueError(
            f"clean: {pictures} pictures; at least {FOLDS} are needed, better 30, as intervals are "
            "checked on pictures that were not learned from"
        )
    seed, qualities = settings.seed * _STREAMS, photographs.quality.numpy()
    jpeg, jpeg_prob = jpeg_range(qualities)
    taken = keyed_rng("fit taken", seed).permutation(count)[:MOST]
    given = measure_all(photographs.crops[taken], photographs.quality[taken])
    widest = dataclasses.replace(WIDEST, jpeg=jpeg, jpeg_prob=jpeg_prob)

    def bank(number: int, ranges: Ranges) -> Bank:
        hq = clean.crops(settings.images, seed=seed + number)
        return simulate(hq, ranges, pictures=pictures, seed=seed + number)

    def result(simulated: Bank, prior: Prior, *, sets: int, number: int) -> Estimate:
        return estimate(simulated, prior, given[None], sets=sets, seed=seed + number)

    log.info("1/4: %d images over the widest ranges", settings.images)
    everywhere, wide = Prior.within(widest), bank(0, widest)
    rough = result(wide, everywhere, sets=settings.sets // 2, number=0)
    log.info("2/4: %d images near the first result", settings.images)
    prior = everywhere.cut(rough.quantiles[0], margin=_MARGIN)
    near = bank(1, dataclasses.replace(widest, **prior.widest()))
    log.info("3/4: the ends, from both")
    found = result(joined(wide, near), prior, sets=settings.sets, number=FOLDS)
    low, middle, high = found.quantiles[0].T
    pairs, shares = np.exp(np.stack([low, high], 1)), np.stack([low, high], 1)[-len(SHARES) :]
    jpegs, jpeg_probs = jpeg_intervals(qualities, seed)
    return Fit(
        ranges=ranges_of(middle, widest).rounded(),
        ends={name: pairs[2 * i : 2 * i + 2] for i, name in enumerate(SEARCHED)} | {"jpeg": jpegs},
        shares={name: (float(a), float(b)) for name, (a, b) in zip(SHARES, shares, strict=True)}
        | {"jpeg_prob": jpeg_probs},
        coverage=dict(zip(UNKNOWNS, found.coverage.tolist(), strict=True)),
        untold=untold(found.quantiles[0], everywhere),
    )


def untold(quantiles: np.ndarray, prior: Prior) -> tuple[str, ...]:
    """Return the unknowns of (10, 3) whose interval is about as wide as the prior's."""
    low, high = prior.interval()
    open_still = quantiles[:, 2] - quantiles[:, 0] > TOLD * (high - low)
    return tuple(np.array(UNKNOWNS)[open_still].tolist())


def jpeg_intervals(qualities: np.ndarray, seed: int) -> tuple[np.ndarray, Range]:
    """Return 90 % intervals of the ends, and of the share, if qualities are uniform between ends.

    As many qualities are drawn between the ends that were found; by how much those found in the
    drawn ones are off is by how much the first may be.
    """
    ends, share = jpeg_range(qualities)
    rng, found = keyed_rng("fit resamples", seed), round(share * len(qualities))
    off = [np.subtract(jpeg_range(rng.uniform(*ends, found))[0], ends) for _ in range(_DRAWS)]
    high, low = np.quantile(off, [0.05, 0.95], axis=0) if found else np.zeros((2, 2))
    shares = rng.binomial(len(qualities), share, _DRAWS) / len(qualities)
    intervals = np.stack([np.subtract(ends, low), np.subtract(ends, high)], 1).clip(1, 100)
    return intervals, (float(np.quantile(shares, 0.05)), float(np.quantile(shares, 0.95)))


def jpeg_range(quality: np.ndarray) -> tuple[Range, float]:
    """Return the range of qualities that were found, and the share of JPEGs.

    The ends are those of the uniform distribution of which as many draws would have the same 5 and
    95 % quantiles on average, so that a few odd files do not matter.
    """
    found = quality[quality < NO_QUALITY]
    if len(found) == 0:
        return (90.0, 95.0), 0.0
    low, high = np.quantile(found, [0.05, 0.95])
    outside = (0.05 * (len(found) - 1) + 1) / (len(found) + 1)  # expected share below the quantile
    beyond = (high - low) * outside / (1 - 2 * outside) if len(found) > 1 else 0.0
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
