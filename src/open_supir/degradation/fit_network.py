"""A network that reads a preset's unknowns, with intervals, from a set of photographs.

Shapes: B sets, G given ones, M images each, K measured numbers, U = 10 unknowns.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_supir.base.rng import keyed_rng
from open_supir.degradation.fit_bank import Bank
from open_supir.degradation.fit_sets import UNKNOWNS, Prior, draw_sets

QUANTILES = (0.05, 0.5, 0.95)
FOLDS = 3  # parts of the clean pictures, each unseen by one network
_CHECKED = 200  # sets of each part that intervals are widened and checked with
_BATCH, _PASSES = 32, 12


class SetNetwork(nn.Module):
    """Quantiles of each unknown, from features of each image, their mean and their spread."""

    def __init__(self, measured: int, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.one = nn.Sequential(
            nn.Linear(measured, width), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(width, width), nn.SiLU(),
        )  # fmt: skip
        self.all = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 3 * len(UNKNOWNS))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, M, K) into (B, U, 3) ascending quantiles of scaled unknowns."""
        each = self.one(images)
        pooled = torch.cat([each.mean(1), each.std(1)], 1)
        middle, below, above = self.all(pooled).unflatten(1, (len(UNKNOWNS), 3)).unbind(2)
        return torch.stack([middle - F.softplus(below), middle, middle + F.softplus(above)], 2)


def pinball(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Return the loss whose minimum is at the QUANTILES: (B, U, 3) against (B, U)."""
    levels, over = quantiles.new_tensor(QUANTILES), truth[..., None] - quantiles
    return torch.maximum(levels * over, (levels - 1) * over).mean()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What sets of photographs say of each unknown."""

    quantiles: np.ndarray  # (G, U, 3): the low end of the 90 % interval, the median, the high end
    coverage: np.ndarray  # (U,) share of test sets whose truth was within the interval


def estimate(bank: Bank, prior: Prior, given: np.ndarray, *, sets: int, seed: int) -> Estimate:
    """Estimate the unknowns of (G, M, K) measured sets of photographs.

    One network for each third of the clean pictures learns from sets of the other two. On sets of
    the third, whose contents it never saw, half serve to widen the intervals until they hold 90 %
    (conformalized quantile regression, Romano et al. 2019) and half to count what they hold. The
    result is the mean of the networks.
    """
    mean, std = bank.measured.mean(0), bank.measured.std(0) + 1e-3

    def standard(measured: np.ndarray) -> Tensor:
        return torch.from_numpy(((measured - mean) / std).clip(-6, 6).astype(np.float32))

    images, photographs, count = standard(bank.measured), standard(given), given.shape[1]
    found, checked, truths = [], [], []
    for fold in range(FOLDS):
        every, rng = np.unique(bank.picture), keyed_rng("fit sets", seed, fold)
        seen, unseen = every[every % FOLDS != fold], every[every % FOLDS == fold]
        unknowns, places = draw_sets(bank, seen, prior, sets=sets, count=count, rng=rng)
        y = torch.from_numpy(prior.scaled(unknowns).astype(np.float32))
        network = _train(images, torch.from_numpy(places), y, seed=seed + fold)
        unknowns, places = draw_sets(bank, unseen, prior, sets=_CHECKED, count=count, rng=rng)
        truths.append(prior.scaled(unknowns))
        with torch.no_grad():
            checked.append(network(images[torch.from_numpy(places)]).numpy())
            found.append(network(photographs).numpy())
    excess = np.array([_excess(*pair) for pair in zip(checked, truths, strict=True)])
    half = _CHECKED // 2
    widen = np.quantile(excess[:, :half], QUANTILES[2] - QUANTILES[0], axis=(0, 1))
    low, middle, high = np.moveaxis(np.mean(found, 0), 2, 0)
    wider = widen * (high - low) / 2
    ends = [prior.unscaled(end) for end in (low - wider, middle, high + wider)]
    coverage = (excess[:, half:] <= widen).mean((0, 1))
    return Estimate(quantiles=np.sort(np.stack(ends, 2), 2), coverage=coverage)


def _excess(quantiles: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return (B, U): how far the truth is beyond the interval, in halves of it; negative inside."""
    low, _, high = np.moveaxis(quantiles, 2, 0)
    return np.maximum(low - truth, truth - high) / ((high - low) / 2)


def _train(images: Tensor, places: Tensor, y: Tensor, *, seed: int) -> SetNetwork:
    """Train on sets: (B, M) places of images, and (B, U) scaled unknowns."""
    steps = int(_PASSES * len(places) / _BATCH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SetNetwork(images.shape[1])
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(places), (_BATCH,))
            optimiser.zero_grad()
            pinball(network(images[places[rows]]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return network.eval()
