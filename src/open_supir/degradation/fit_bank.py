"""Simulated photographs with known parameters.

Shapes: N images of S x S pixels, B of a chunk, K measured numbers.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from open_supir.base.images import to_uint8
from open_supir.base.rng import keyed_hash, keyed_rng
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.fit_ranges import SEARCHED, Range, Ranges
from open_supir.degradation.params import NO_JPEG, DegradationParams
from open_supir.degradation.pipeline import DegradationPipeline
from open_supir.degradation.statistics import measure

CHUNK = 32
NO_QUALITY = 100.0  # stands for the quality of what was not compressed


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Simulated images: what was drawn, and what was measured."""

    blur: np.ndarray  # (N,)
    down: np.ndarray
    strength: np.ndarray  # Gaussian sigma or Poisson factor
    is_gaussian: np.ndarray
    is_gray: np.ndarray
    picture: np.ndarray  # number of the clean picture
    measured: np.ndarray  # (N, K) as `features`
    # What blur, down and strength were drawn from, uniform in their logarithms: each for an equal
    # share of the images. Choices are even.
    priors: tuple[Ranges, ...]

    def density(self) -> np.ndarray:
        """Return (N,): how densely such parameters were drawn, up to a factor."""
        each = []
        for prior in self.priors:
            noise = np.where(
                self.is_gaussian,
                _log_density(self.strength, prior.sigma),
                _log_density(self.strength, prior.poisson),
            )
            each.append(
                _log_density(self.blur, prior.blur) * _log_density(self.down, prior.down) * noise
            )
        return np.mean(each, axis=0)


def _log_density(values: np.ndarray, ends: Range) -> np.ndarray:
    """Return the density of a log-uniform distribution, with room for float32."""
    inside = (values >= ends[0] * (1 - 1e-6)) & (values <= ends[1] * (1 + 1e-6))
    return inside / values / np.log(ends[1] / ends[0])


def simulate(hq: Tensor, prior: Ranges, *, pictures: int, seed: int) -> Bank:
    """Degrade (N, 3, S, S) uint8 images, each with parameters of its own.

    Quality and choices are drawn as `prior` says, the rest uniformly in logarithms. `hq` comes in
    turn from each of `pictures`, as from `CleanPictures.crops`.
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
    whole = {k: torch.cat([p[k] for p in parts]).numpy() for k in parts[0]}
    return Bank(picture=np.arange(len(hq)) % pictures, priors=(prior,), **whole)


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
    """Return both banks' images; the banks are equally large."""
    arrays = [f.name for f in dataclasses.fields(Bank) if f.name != "priors"]
    both = {n: np.concatenate([getattr(one, n), getattr(other, n)]) for n in arrays}
    return Bank(priors=one.priors + other.priors, **both)


def _log_uniform(rng: np.random.Generator, ends: Range, count: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]), count))
