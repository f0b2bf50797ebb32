"""Simulated photographs with known parameters, and a small network that reads them back.

Shapes: N images of S x S pixels, B of a chunk, K measured numbers.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from open_supir.base.images import to_uint8
from open_supir.base.rng import keyed_hash, keyed_rng
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.fit_ranges import SEARCHED, Range, Ranges
from open_supir.degradation.params import NO_JPEG, DegradationParams
from open_supir.degradation.pipeline import DegradationPipeline
from open_supir.degradation.statistics import measure

CHUNK = 32
NO_QUALITY = 100.0  # stands for the quality of what was not compressed
TARGETS = ("blur", "down", "noise", "is_gaussian", "is_gray")
MID_GREY_LEVELS = 255 * math.sqrt(0.5 / 256)  # Poisson noise of factor 1, 256 levels, at 0.5


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Simulated images: what was drawn, and what was measured."""

    blur: np.ndarray  # (N,)
    down: np.ndarray
    strength: np.ndarray  # Gaussian sigma or Poisson factor
    is_gaussian: np.ndarray
    is_gray: np.ndarray
    measured: np.ndarray  # (N, K) as `features`
    prior: Ranges  # what blur, down and strength were drawn from, uniform in their logarithms

    def targets(self) -> np.ndarray:
        """Return (N, 5) of TARGETS: logarithms, and choices as 0 or 1."""
        noise = self.strength * np.where(self.is_gaussian, 1, MID_GREY_LEVELS)
        logs = np.log([self.blur, self.down, noise])
        return np.stack([*logs, self.is_gaussian, self.is_gray], 1).astype(np.float32)


def simulate(hq: Tensor, prior: Ranges, *, seed: int) -> Bank:
    """Degrade (N, 3, S, S) uint8 images, each with parameters of its own.

    Quality and choices are drawn as `prior` says, the rest uniformly in logarithms.
    """
    pipeline, rng = DegradationPipeline(prior.config(), path="loop"), keyed_rng("fit bank", seed)
    logs = {name: _log_uniform(rng, getattr(prior, name), len(hq)) for name in SEARCHED}
    parts = []
    for at, images, params in _drawn(pipeline, hq, seed):
        blur, down, sigma, poisson = (torch.from_numpy(logs[name][at]) for name in SEARCHED)
        side = (down * hq.shape[-1]).floor().long().clamp_min(8)
        kernel = dataclasses.replace(params.first.kernel, sigma_x=blur, sigma_y=blur)
        first = dataclasses.replace(params.first, kernel=kernel, height=side, width=side)
        strength = torch.where(params.second.noise == 1, sigma, poisson)
        second = dataclasses.replace(params.second, strength=strength)
        params = dataclasses.replace(params, first=first, second=second)
        drawn = {"blur": blur, "down": down, "strength": strength}
        drawn |= {"is_gaussian": params.second.noise == 1, "is_gray": params.second.gray}
        lq = pipeline.apply(images, params) / 2 + 0.5
        parts.append(drawn | {"measured": features(lq, _qualities(params))})
    return Bank(prior=prior, **{k: torch.cat([p[k] for p in parts]).numpy() for k in parts[0]})


def degrade(config: DegradationConfig, hq: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Degrade (N, 3, S, S) uint8 images as training would.

    Returns:
        (N, 3, S, S) uint8 images, and the (N,) qualities of the last JPEG.
    """
    pipeline, lq, quality = DegradationPipeline(config, path="loop"), [], []
    for _, images, params in _drawn(pipeline, hq, seed):
        lq.append(to_uint8(pipeline.apply(images, params) / 2 + 0.5))
        quality.append(_qualities(params))
    return torch.cat(lq), torch.cat(quality)


def measure_all(images: Tensor, quality: Tensor) -> np.ndarray:
    """Return (N, K) of (N, 3, S, S) uint8 images: statistics, details, quality."""
    chunks = zip(images.split(CHUNK), quality.split(CHUNK), strict=True)
    return torch.cat([features(part.float() / 255, known) for part, known in chunks]).numpy()


def features(images: Tensor, quality: Tensor) -> Tensor:
    """Return (B, K) of unit images."""
    return torch.cat([*measure(images), quality[:, None].float()], 1)


def _drawn(
    pipeline: DegradationPipeline, hq: Tensor, seed: int
) -> Iterator[tuple[slice, Tensor, DegradationParams]]:
    """Yield places, images and parameters, in chunks."""
    start = keyed_hash("fit", seed, size=8) >> 8
    for first in range(0, len(hq), CHUNK):
        at = slice(first, min(first + CHUNK, len(hq)))
        seeds = torch.arange(at.start, at.stop) + start
        yield at, hq[at], pipeline.draw(seeds, size=(hq.shape[-2], hq.shape[-1]))


def _qualities(params: DegradationParams) -> Tensor:
    drawn = params.second.quality
    return torch.where(drawn == NO_JPEG, NO_QUALITY, drawn)


def joined(one: Bank, other: Bank) -> Bank:
    """Return both banks' images, for learning from."""
    parts = {}
    for field in dataclasses.fields(Bank):
        pair = [getattr(bank, field.name) for bank in (one, other)]
        parts[field.name] = pair[0] if field.name == "prior" else np.concatenate(pair)
    return Bank(**parts)


def _log_uniform(rng: np.random.Generator, ends: Range, count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]), count))


class Reader:
    """Estimates of TARGETS from what was measured: means of the posterior, by least squares.

    Such means are the best few summaries for matching by simulation (Fearnhead and Prangle 2012).
    """

    def __init__(self, bank: Bank, *, seed: int, steps: int = 500, width: int = 64) -> None:
        x, y = torch.from_numpy(bank.measured), torch.from_numpy(bank.targets())
        self.x_mean, self.x_std = x.mean(0), x.std(0) + 1e-3
        self.y_mean, self.y_std = y.mean(0), y.std(0) + 1e-6
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(x.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                nn.Linear(width, len(TARGETS)),
            )  # fmt: skip
        self._train((x - self.x_mean) / self.x_std, (y - self.y_mean) / self.y_std, seed, steps)

    def _train(self, x: Tensor, y: Tensor, seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (256,), generator=generator)
            optimiser.zero_grad()
            (self.net(x[rows]) - y[rows]).square().mean().backward()
            optimiser.step()
            schedule.step()

    @torch.no_grad()
    def __call__(self, measured: np.ndarray) -> np.ndarray:
        """Return (N, 5) estimates, standardised as in the bank that was learned from."""
        x = (torch.from_numpy(measured) - self.x_mean) / self.x_std
        return self.net(x.clamp(-6, 6)).numpy()

    def skill(self, bank: Bank) -> dict[str, float]:
        """Return, by target, the share of its variance in another bank that is read correctly."""
        truth = (torch.from_numpy(bank.targets()) - self.y_mean) / self.y_std
        error = (torch.from_numpy(self(bank.measured)) - truth).var(0) / truth.var(0)
        return dict(zip(TARGETS, (1 - error).clamp_min(0).tolist(), strict=True))
