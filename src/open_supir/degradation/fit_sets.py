"""Training sets for a fit: images of a bank, drawn as presets that are drawn from a prior do.

A preset is ten numbers, its unknowns: the logarithms of both ends of the four searched ranges, then
the shares of Gaussian and of grey noise. Nothing is simulated: an image of the bank is drawn as
often as the preset draws its parameters.

Shapes: B presets, N images of the bank, M photographs.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from open_supir.base.rng import keyed_rng
from open_supir.degradation.fit_bank import Bank
from open_supir.degradation.fit_ranges import SEARCHED, Range, Ranges

SHARES = ("gaussian_prob", "gray_prob")
UNKNOWNS = (*(f"{name} {end}" for name in SEARCHED for end in ("low", "high")), *SHARES)
NARROWEST = 0.02  # of a range's logarithm: a fixed value is a range, too
_VALUES = 4  # unknowns, of blur and reduction, that are even in their values, not in logarithms
_ROOM = 0.2  # of a logarithm
_LEAST = 20.0  # effective images below which a preset's set would repeat a few
_SUBSET = 0.5  # least share of the clean pictures that a set shows


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Which presets are possible: unknowns within bounds, low ends below high.

    Among these, ends of blur and reduction are even in their values, as a preset draws from its
    ranges. Those of noise are even in their logarithms, since they span two orders of magnitude.
    """

    bounds: np.ndarray  # (10, 2)

    @classmethod
    def within(cls, ranges: Ranges) -> "Prior":
        """Allow both ends of each range anywhere in `ranges`, and every share."""
        ends = [np.log(getattr(ranges, name)) for name in SEARCHED for _ in range(2)]
        return cls(bounds=np.array([*ends, (0.0, 1.0), (0.0, 1.0)]))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return (count, 10) unknowns."""
        found = np.empty((0, len(self.bounds)))
        while len(found) < count:
            drawn = rng.uniform(self.bounds[:, 0], self.bounds[:, 1], (4 * count, len(UNKNOWNS)))
            ends = np.exp(self.bounds[:_VALUES])
            drawn[:, :_VALUES] = np.log(rng.uniform(ends[:, 0], ends[:, 1], (4 * count, _VALUES)))
            ordered = drawn[:, 0:8:2] + NARROWEST <= drawn[:, 1:8:2]
            found = np.concatenate([found, drawn[ordered.all(1)]])
        return found[:count]

    def cut(self, quantiles: np.ndarray, *, margin: float) -> "Prior":
        """Keep what lies in (10, 3) quantiles, wider by a share of the width on either side."""
        low, high = quantiles[:, 0], quantiles[:, 2]
        more = margin * (high - low)
        bounds = np.stack([low - more, high + more], 1)
        bounds = bounds.clip(self.bounds[:, :1], self.bounds[:, 1:])
        lows, highs = bounds[0:8:2], bounds[1:8:2]  # views; there must be room for low below high
        highs[:, 1] = np.maximum(highs[:, 1], self.bounds[1:8:2, 0] + _ROOM)
        lows[:, 0] = np.minimum(lows[:, 0], highs[:, 1] - _ROOM)
        return Prior(bounds=bounds)

    def interval(self) -> np.ndarray:
        """Return (2, 10): 5 and 95 % quantiles of each unknown, before anything is seen."""
        return np.quantile(self.draw(10_000, keyed_rng("fit prior")), [0.05, 0.95], axis=0)

    def widest(self) -> dict[str, Range]:
        """Return the ranges that hold all presets'."""
        outer = np.exp(np.stack([self.bounds[0:8:2, 0], self.bounds[1:8:2, 1]], 1))
        return {
            name: (low, high) for name, (low, high) in zip(SEARCHED, outer.tolist(), strict=True)
        }

    def scaled(self, unknowns: np.ndarray) -> np.ndarray:
        """Return unknowns as numbers from -2 to 2, which a network learns."""
        low, high = self.bounds.T
        return (unknowns - low) / (high - low) * 4 - 2

    def unscaled(self, scaled: np.ndarray) -> np.ndarray:
        """Invert `scaled`, within the bounds."""
        low, high = self.bounds.T
        return ((scaled + 2) / 4 * (high - low) + low).clip(low, high)


def unknowns_of(ranges: Ranges) -> np.ndarray:
    """Return (10,) of a preset."""
    ends = np.log([getattr(ranges, name) for name in SEARCHED]).ravel()
    return np.array([*ends, *(getattr(ranges, name) for name in SHARES)])


def ranges_of(unknowns: np.ndarray, others: Ranges) -> Ranges:
    """Return the preset of (10,) unknowns, with the JPEG of `others`."""
    pairs = np.sort(np.exp(unknowns[:8]).reshape(4, 2), 1).tolist()
    found = {name: (low, high) for name, (low, high) in zip(SEARCHED, pairs, strict=True)}
    shares = dict(zip(SHARES, unknowns[8:].tolist(), strict=True))
    return dataclasses.replace(others, **found, **shares)


def weigh(bank: Bank, unknowns: np.ndarray) -> np.ndarray:
    """Return (B, N) weights: the density of each image's parameters in (B, 10) over the bank's."""
    ends, (gaussian, gray) = np.exp(unknowns[:, :8].T[:, :, None]), unknowns[:, 8:].T[:, :, None]
    weights = _uniform(bank.blur, *ends[0:2]) * _uniform(bank.down, *ends[2:4])
    weights *= np.where(
        bank.is_gaussian,
        gaussian * _uniform(bank.strength, *ends[4:6]),
        (1 - gaussian) * _uniform(bank.strength, *ends[6:8]),
    )
    return weights * np.where(bank.is_gray, gray, 1 - gray) / bank.density()


def _uniform(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return ((values >= low) & (values <= high)) / (high - low)


def draw_sets(
    bank: Bank,
    pictures: np.ndarray,
    prior: Prior,
    *,
    sets: int,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw presets, and `count` images of each.

    Each set shows a random part of `pictures`, numbers in the bank, at least half of them: contents
    vary from set to set, as the photographs' differ from the clean pictures'. Presets of which the
    bank holds too few images are left out; so very narrow ranges are rarer than the prior says.

    Returns:
        (sets, 10) unknowns, and (sets, count) places in the bank.
    """
    usable = np.isin(bank.picture, pictures)
    least = min(_LEAST, usable.sum() / 50)
    presets, places = [], []
    while len(places) < sets:
        drawn = prior.draw(64, rng)
        for unknowns, weights in zip(drawn, weigh(bank, drawn), strict=True):
            few = max(1, round(len(pictures) * rng.uniform(_SUBSET, 1)))
            shown = rng.choice(pictures, few, replace=False)
            sums = np.cumsum(weights * np.isin(bank.picture, shown))
            squares = np.square(np.diff(sums, prepend=0)).sum()
            if sums[-1] == 0 or sums[-1] ** 2 / squares < least:
                continue
            presets.append(unknowns)
            places.append(np.searchsorted(sums, sums[-1] * rng.random(count), side="right"))
    return np.array(presets[:sets]), np.array(places[:sets])
