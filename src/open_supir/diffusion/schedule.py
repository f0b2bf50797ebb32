"""Noise schedule: Stable Diffusion's sigma table, grids of sigmas, and sigma <-> index.

Sigmas are standard deviations of the noise added to a latent of about unit variance. Grids are
lists of Python floats, descending, with a final 0, so that a sampling loop never waits for a
device. B is the batch.
"""

import math
from functools import cache

import torch
from torch import Tensor

NUM_TABLE_SIGMAS = 1000
BETA_START = 0.00085  # Stable Diffusion's "scaled linear" betas, which SDXL keeps
BETA_END = 0.012
LCM_STEPS = 50  # arXiv:2310.04378: skipping 20 steps at a time
SIGMA_MAX = 14.6146  # top of the table, rounded as the released SUPIR rounds it (14.6146412)


def sigma_table() -> Tensor:
    """Return the 1000 DDPM sigmas, ascending from 0.0292 to 14.6146, float32, on the CPU."""
    betas = (
        torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TABLE_SIGMAS, dtype=torch.float64) ** 2
    )
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()


@cache
def table_on(device: torch.device) -> Tensor:
    """Return the sigma table on `device`: one copy per device, read-only."""
    with torch.inference_mode(False):  # a cached inference tensor would break later training steps
        return sigma_table().to(device)


def table_sigmas(num_steps: int) -> list[float]:
    """Return `num_steps` sigmas of the table, evenly spaced by index from the top down, then 0.

    Only 1000 steps reach the table's lowest sigma: 50 steps end at index 19 (0.1345).

    Raises:
        ValueError: `num_steps` is not in 1..1000.
    """
    if not 1 <= num_steps <= NUM_TABLE_SIGMAS:
        raise ValueError(f"num_steps must be in 1..{NUM_TABLE_SIGMAS}, got {num_steps}")
    table = sigma_table().tolist()
    top = NUM_TABLE_SIGMAS - 1
    # floor of linspace(999, 0, num_steps, endpoint excluded), in exact integer arithmetic
    return [table[(top * (num_steps - step)) // num_steps] for step in range(num_steps)] + [0.0]


def karras_sigmas(
    num_steps: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float = SIGMA_MAX,
    rho: float = 7.0,
) -> list[float]:
    """Return `num_steps` sigmas evenly spaced in sigma ** (1 / rho), then 0.

    Source: Karras et al. 2022 (arXiv:2206.00364), equation 5.

    Args:
        num_steps: Number of sigmas before the final 0.
        sigma_min: Lowest of them; None takes the lowest of `table_sigmas(num_steps)`, as SUPIR
            does.
        sigma_max: Highest of them.
        rho: Larger values put more steps at low noise.
    """
    low, high = _bounds(num_steps, sigma_min, sigma_max)
    root_low, root_high = low ** (1 / rho), high ** (1 / rho)
    return [(root_high + ramp * (root_low - root_high)) ** rho for ramp in _ramp(num_steps)] + [0.0]


def exponential_sigmas(
    num_steps: int, *, sigma_min: float | None = None, sigma_max: float = SIGMA_MAX
) -> list[float]:
    """Return `num_steps` sigmas evenly spaced in log sigma, then 0; see `karras_sigmas`."""
    low, high = _bounds(num_steps, sigma_min, sigma_max)
    ratio = math.log(low / high)
    return [high * math.exp(ramp * ratio) for ramp in _ramp(num_steps)] + [0.0]


def lcm_sigmas(num_steps: int) -> list[float]:
    """Return `num_steps` of the 50 sigmas that latent consistency models are distilled at, then 0.

    These have the table's indices 999, 979, ..., 19; they are picked evenly from the top down, as
    diffusers' LCMScheduler does.

    Raises:
        ValueError: `num_steps` is not in 1..50.
    """
    if not 1 <= num_steps <= LCM_STEPS:
        raise ValueError(f"num_steps must be in 1..{LCM_STEPS} with grid=lcm, got {num_steps}")
    table, stride = sigma_table().tolist(), NUM_TABLE_SIGMAS // LCM_STEPS
    picked = (step * LCM_STEPS // num_steps for step in range(num_steps))
    return [table[NUM_TABLE_SIGMAS - 1 - stride * number] for number in picked] + [0.0]


def nearest_index(sigma: Tensor) -> Tensor:
    """Return the table index (B,) int64 whose sigma is nearest to `sigma` (B,)."""
    distance = (sigma.float()[:, None] - table_on(sigma.device)[None, :]).abs()  # (B, 1000)
    return distance.argmin(dim=1)


def index_to_sigma(index: Tensor) -> Tensor:
    """Return the table's sigma (B,) float32 at `index` (B,) int64 in 0..999."""
    return table_on(index.device)[index]


def fractional_index(sigma: Tensor) -> Tensor:
    """Return the table position (B,) float32 of `sigma` (B,), clamped to 0..999.

    It is interpolated linearly in log sigma.
    """
    log_table = table_on(sigma.device).log()
    log_sigma = sigma.float().log()
    low = (torch.searchsorted(log_table, log_sigma) - 1).clamp(0, NUM_TABLE_SIGMAS - 2)
    fraction = (log_sigma - log_table[low]) / (log_table[low + 1] - log_table[low])
    return (low + fraction).clamp(0, NUM_TABLE_SIGMAS - 1)


def _bounds(num_steps: int, sigma_min: float | None, sigma_max: float) -> tuple[float, float]:
    low = table_sigmas(num_steps)[-2] if sigma_min is None else sigma_min
    if num_steps == 1:
        low = min(low, sigma_max)  # a single step starts at the top, so there is no lower end
    if not 0 < low <= sigma_max:
        raise ValueError(
            f"sigmas must satisfy 0 < sigma_min <= sigma_max, got {low} and {sigma_max}"
        )
    return low, sigma_max


def _ramp(num_steps: int) -> list[float]:
    return [step / max(num_steps - 1, 1) for step in range(num_steps)]
