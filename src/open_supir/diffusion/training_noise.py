"""Randomness of a training step: noise from each sample's own seed, and how sigma is drawn.

Numbers come from a counter, not from a generator's state (splitmix64, Steele et al. 2014): a sample
with a given seed gets the same noise in any batch, on any rank or device, and after any resume. B
is the batch.
"""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from open_supir.diffusion.denoiser import Prediction, precondition
from open_supir.diffusion.schedule import NUM_TABLE_SIGMAS, index_to_sigma

SIGMA_STREAM = 1  # streams of a seed's numbers; no two uses share one
NOISE_STREAM = 2
OFFSET_STREAM = 3

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # splitmix64's constants, as signed 64-bit integers
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_LOW_32 = (1 << 32) - 1


def seeded_randn(
    seeds: Tensor,
    shape: Sequence[int],
    stream: int = NOISE_STREAM,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return standard normal noise (B, ...), float32: sample i from `seeds[i]` and `stream` alone.

    Args:
        seeds: (B,) int64, on any device.
        shape: (B, ...) of the result.
        stream: Different streams of a seed are independent.
        device: Where the numbers are computed. Devices agree up to float32 rounding.
    """
    count = math.prod(shape[1:])
    words = _words(seeds, (count + 1) // 2, stream, device)
    # Box-Muller: one 64-bit word gives two normals; float64, so that all devices round alike
    radius = (-2 * ((_shift(words, 32).double() + 0.5) / 2**32).log()).sqrt()
    angle = (words & _LOW_32).double() * (2 * math.pi / 2**32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)  # (B, n, 2)
    return pairs.flatten(1)[:, :count].float().reshape(tuple(shape))


def seeded_noise(
    seeds: Tensor, shape: Sequence[int], *, offset: float = 0.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the noise (B, C, h, w) of training samples.

    Args:
        seeds, shape, device: See `seeded_randn`.
        offset: Strength of a component that is constant over each channel of an image, so that the
            mean is learned as well (Guttenberg 2023; SDXL was refined with 0.05). 0 is plain noise.
    """
    noise = seeded_randn(seeds, shape, device=device)
    if not offset:
        return noise
    constant = seeded_randn(seeds, (*shape[:2], 1, 1), OFFSET_STREAM, device)
    return noise + offset * constant


def seeded_uniform(
    seeds: Tensor,
    shape: Sequence[int],
    stream: int = SIGMA_STREAM,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return numbers uniform in [0, 1), float64; arguments as in `seeded_randn`."""
    words = _words(seeds, math.prod(shape[1:]), stream, device)
    return (_shift(words, 11).double() * 2**-53).reshape(tuple(shape))


class TableNoise:
    """Draws sigma from the DDPM table: uniform over the indices, as SDXL and SUPIR train.

    Args:
        index_range: Lowest and highest table index drawn, both included.
        power: Exponent applied to the uniform number that picks the index: below 1 favours high
            noise, above 1 low noise.
        prediction: The network output whose plain mean squared error the weighted loss equals.
        sigma_data: Standard deviation of the clean latents; only edm uses it.

    Raises:
        ValueError: The range is not within 0..999, `power` is not positive, or `prediction` is
            unknown.
    """

    def __init__(
        self,
        *,
        index_range: tuple[int, int] = (0, NUM_TABLE_SIGMAS - 1),
        power: float = 1.0,
        prediction: Prediction = "eps",
        sigma_data: float = 0.5,
    ) -> None:
        low, high = index_range
        if not 0 <= low <= high < NUM_TABLE_SIGMAS:
            raise ValueError(
                f"index_range must be 0 <= low <= high < {NUM_TABLE_SIGMAS}, got {low}, {high}"
            )
        if not power > 0:
            raise ValueError(f"power must be positive, got {power}")
        self.low, self.high, self.power = low, high, power
        self.prediction: Prediction = _known(prediction)
        self.sigma_data = sigma_data

    def sample(
        self, seeds: Tensor, device: torch.device | str = "cpu", *, stream: int = SIGMA_STREAM
    ) -> Tensor:
        """Return one sigma (B,) float32 for each of `seeds` (B,) int64."""
        u = seeded_uniform(seeds, (len(seeds),), stream, device) ** self.power
        span = self.high - self.low + 1
        index = self.low + (u * span).long().clamp(max=span - 1)  # u rounds to 1 under small powers
        return index_to_sigma(index)

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the loss weight (B,) of `sigma` (B,) for an error measured on the clean latent."""
        return output_weight(self.prediction, sigma, sigma_data=self.sigma_data)


class LogNormalNoise:
    """Draws log sigma from a normal distribution (Karras et al. 2022, table 1).

    Args:
        mean, std: Of log sigma; EDM uses -1.2 and 1.2.
        sigma_range: Lowest and highest sigma; draws are clamped to it.
        prediction: The network output whose plain mean squared error the weighted loss equals.
        sigma_data: Standard deviation of the clean latents; only edm uses it.

    Raises:
        ValueError: `std` or `sigma_data` is not positive, the range is empty, or `prediction` is
            unknown.
    """

    def __init__(
        self,
        *,
        mean: float = -1.2,
        std: float = 1.2,
        sigma_range: tuple[float, float] = (0.002, 80.0),
        prediction: Prediction = "edm",
        sigma_data: float = 0.5,
    ) -> None:
        low, high = sigma_range
        if not (std > 0 and sigma_data > 0):
            raise ValueError(f"std and sigma_data must be positive, got {std} and {sigma_data}")
        if not 0 < low <= high:
            raise ValueError(f"sigma_range must be 0 < low <= high, got {tuple(sigma_range)}")
        self.mean, self.std, self.low, self.high = mean, std, low, high
        self.prediction: Prediction = _known(prediction)
        self.sigma_data = sigma_data

    def sample(
        self, seeds: Tensor, device: torch.device | str = "cpu", *, stream: int = SIGMA_STREAM
    ) -> Tensor:
        """Return one sigma (B,) float32 for each of `seeds` (B,) int64."""
        normal = seeded_randn(seeds, (len(seeds),), stream, device)
        return (self.mean + self.std * normal).exp().clamp(self.low, self.high)

    def weight(self, sigma: Tensor) -> Tensor:
        """Return the loss weight (B,) of `sigma` (B,) for an error measured on the clean latent."""
        return output_weight(self.prediction, sigma, sigma_data=self.sigma_data)


def output_weight(prediction: Prediction, sigma: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """Return the weight (B,) that turns a squared error of the clean latent into one of the output.

    It is c_out ** -2; for eps that is sigma ** -2, which makes the weighted loss the plain mean
    squared error of the noise.
    """
    return precondition(prediction, sigma.float(), sigma_data=sigma_data).c_out ** -2


def _known(prediction: Prediction) -> Prediction:
    if prediction not in get_args(Prediction):
        raise ValueError(
            f"unknown prediction {prediction!r}; known: {', '.join(get_args(Prediction))}"
        )
    return prediction


def _words(seeds: Tensor, count: int, stream: int, device: torch.device | str) -> Tensor:
    """Return `count` random 64-bit words per seed, (B, count) int64."""
    seeds = seeds.to(device=device, dtype=torch.int64, non_blocking=True)
    key = _mix(_mix(seeds + _GAMMA) + _signed((stream + 1) * 0xD1B54A32D192ED03))
    counter = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64)
    return _mix(key[:, None] + counter[None, :] * _GAMMA)


def _mix(words: Tensor) -> Tensor:
    """Apply splitmix64's finaliser; int64 products wrap around as unsigned ones would."""
    words = (words ^ _shift(words, 30)) * _MULTIPLIER_1
    words = (words ^ _shift(words, 27)) * _MULTIPLIER_2
    return words ^ _shift(words, 31)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros; torch's >> keeps the sign of int64."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
