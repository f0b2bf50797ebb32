"""Find ranges whose simulated images are distributed as the given ones, by reweighting a bank.

A candidate's images are those of the bank, each weighted by how likely the candidate draws its
parameters: nothing is simulated during the search, and thousands of candidates cost seconds.

Shapes: N images of the bank, M given images, D directions.
"""

import dataclasses

import numpy as np

from open_supir.base.rng import keyed_rng
from open_supir.degradation.fit_bank import Bank
from open_supir.degradation.fit_ranges import SEARCHED, Range, Ranges

NARROWEST = 0.02  # of a range's logarithm: a fixed value is a range, too
_FLOOR = 0.05  # least scale of a direction, as a share of the bank's standard deviation
_FEWEST = 20.0  # effective images below which a candidate cannot be judged


class Distance:
    """Cramer-von Mises distance of weighted bank and given images, over 1-D directions.

    The directions are the columns of what was read and measured, and random ones through the
    former, which see how quantities go together (a sliced distance).

    Args:
        bank: Candidates' images.
        bank_read: (N, 5) estimates of the bank's parameters, and (M, 5) `given_read`.
        bank_measured: (N, K) statistics, and (M, K) `given_measured`.
    """

    def __init__(
        self,
        bank: Bank,
        bank_read: np.ndarray,
        bank_measured: np.ndarray,
        given_read: np.ndarray,
        given_measured: np.ndarray,
        *,
        seed: int,
        slices: int = 16,
    ) -> None:
        self.bank = bank
        turns = keyed_rng("fit slices", seed).standard_normal((bank_read.shape[1], slices))
        turns /= np.linalg.norm(turns, axis=0)
        ours = np.concatenate([bank_read, bank_read @ turns, bank_measured], 1)
        theirs = np.concatenate([given_read, given_read @ turns, given_measured], 1)
        low, high = np.quantile(theirs, [0.16, 0.84], axis=0)
        scale = np.maximum((high - low) / 2, _FLOOR * ours.std(0) + 1e-6)
        self.ours, self.theirs = (ours / scale).T, (theirs / scale).T  # (D, N), (D, M)
        self.order = self.ours.argsort(1)
        ranked = np.take_along_axis(self.ours, self.order, 1)
        self.gaps = np.diff(ranked, axis=1)
        self.ranks = np.stack(
            [np.searchsorted(r, t, side="left") for r, t in zip(ranked, self.theirs, strict=True)]
        )  # at and above this place of the bank a given image counts
        self.given = self._given_cdf(np.ones(self.theirs.shape[1]))
        self.counts = np.ones(self.ours.shape[1])

    def resample(self, drawn: np.ndarray, rng: np.random.Generator) -> None:
        """Count only the given images at (M,) places, some more than once, and the bank's likewise.

        So the spread of results holds the chance of the photographs and of the simulation.
        """
        self.given = self._given_cdf(np.bincount(drawn, minlength=self.theirs.shape[1]) * 1.0)
        self.counts = rng.exponential(size=self.ours.shape[1])

    def _given_cdf(self, counts: np.ndarray) -> np.ndarray:
        places = self.ours.shape[1] + 1
        sums = [np.bincount(rank, counts, minlength=places) for rank in self.ranks]
        return np.cumsum(sums, 1)[:, :-2] / counts.sum()

    def __call__(self, ranges: Ranges) -> float:
        """Return the mean over directions; infinite if too few of the bank lie in the ranges."""
        weights = weigh(self.bank, ranges) * self.counts
        total = weights.sum()
        if total == 0 or total**2 / (weights**2).sum() < _FEWEST:
            return float("inf")
        ours = np.cumsum((weights / total)[self.order], 1)[:, :-1]
        return float((np.square(ours - self.given) * self.gaps).sum(1).mean())


def weigh(bank: Bank, ranges: Ranges) -> np.ndarray:
    """Return (N,) weights: the density of each image's parameters in `ranges` over the bank's."""
    prior, gaussian = bank.prior, bank.is_gaussian
    weights = _density(bank.blur, ranges.blur, prior.blur)
    weights *= _density(bank.down, ranges.down, prior.down)
    weights *= np.where(
        gaussian,
        ranges.gaussian_prob / prior.gaussian_prob
        * _density(bank.strength, ranges.sigma, prior.sigma),
        (1 - ranges.gaussian_prob) / (1 - prior.gaussian_prob)
        * _density(bank.strength, ranges.poisson, prior.poisson),
    )  # fmt: skip
    gray = np.where(bank.is_gray, ranges.gray_prob, 1 - ranges.gray_prob)
    return weights * gray / np.where(bank.is_gray, prior.gray_prob, 1 - prior.gray_prob)


def _density(values: np.ndarray, ends: Range, prior: Range) -> np.ndarray:
    """Return the uniform density between `ends` over the log-uniform one between `prior`'s."""
    inside = (values >= ends[0]) & (values <= ends[1])
    return inside * values * np.log(prior[1] / prior[0]) / (ends[1] - ends[0])


def search(
    distance: Distance,
    *,
    jpeg: Range,
    jpeg_prob: float,
    seed: int,
    start: Ranges | None = None,
    rounds: int = 120,
) -> Ranges:
    """Minimise the distance by differential evolution (Storn and Price 1997, as in SciPy).

    Args:
        start: Ranges to begin near.
        rounds: Generations.
    """
    from scipy.optimize import differential_evolution  # late: takes half a second to import

    prior, names = distance.bank.prior, SEARCHED

    def ranges_of(x: np.ndarray) -> Ranges:
        found: dict[str, Range] = {}
        for i, name in enumerate(names):
            low, high = np.log(getattr(prior, name))
            a, b = sorted(low + (high - low) * x[2 * i : 2 * i + 2])
            b = min(max(b, a + NARROWEST), high)
            found[name] = (float(np.exp(min(a, b - NARROWEST))), float(np.exp(b)))
        return Ranges(
            **found, gaussian_prob=float(x[-2]), gray_prob=float(x[-1]),
            jpeg=jpeg, jpeg_prob=jpeg_prob,
        )  # fmt: skip

    bounds = [(0.0, 1.0)] * (2 * len(names) + 2)
    rng = keyed_rng("fit search", seed)
    first = rng.random((60, len(bounds)))
    if start is not None:
        here = []
        for name in names:
            low, high = np.log(getattr(prior, name))
            here += list((np.log(getattr(start, name)) - low) / (high - low))
        here += [start.gaussian_prob, start.gray_prob]
        steps = rng.standard_normal((40, len(bounds))) * np.repeat([0.1, 0.3], 20)[:, None]
        first[:40] = (np.array(here) + steps).clip(0, 1)
        first[0] = np.clip(here, 0, 1)
    found = differential_evolution(
        lambda x: distance(ranges_of(x)), bounds,
        init=first,  # type: ignore[arg-type]  # an array of candidates is taken, too
        maxiter=rounds, tol=1e-4, mutation=(0.4, 0.9), recombination=0.8, polish=False, rng=rng,
    )  # fmt: skip
    return ranges_of(found.x)


def widened(ranges: Ranges, within: Ranges, *, factor: float) -> Ranges:
    """Return ranges whose ends are further by `factor`, for another bank; choices are even."""
    wide = {}
    for name in SEARCHED:
        (low, high), (least, most) = getattr(ranges, name), getattr(within, name)
        wide[name] = (max(low / factor, least), min(high * factor, most))
    return dataclasses.replace(ranges, **wide, gaussian_prob=0.5, gray_prob=0.5)
