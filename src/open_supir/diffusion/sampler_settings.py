"""SamplerSettings: how a latent is sampled, and by which sampler.

B batch, h w latent size. Latents are scaled and float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from open_supir.base.registry import register
from open_supir.diffusion.guidance import IntervalScale, LinearScale, Scale
from open_supir.diffusion.samplers import (
    Denoise,
    OnStep,
    Randn,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sample_lcm,
)
from open_supir.diffusion.schedule import (
    SIGMA_MAX,
    exponential_sigmas,
    karras_sigmas,
    lcm_sigmas,
    table_sigmas,
)

Sampler = Literal["euler", "heun", "dpmpp_2m", "lcm"]
Grid = Literal["table", "karras", "exponential", "lcm"]
Center = Literal["clean", "clean_sampled", "lq"]


@register
@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How to sample. To add a sampler, subclass this and override `sample`.

    Raises:
        ValueError: A value is out of its range; the message names it.
    """

    num_steps: int = 50  # 1..1000
    # euler and heun add noise back by `s_churn`, dpmpp_2m by `eta`, lcm all of it
    sampler: Sampler = "euler"
    grid: Grid = "table"  # how the noise levels are spaced
    cfg_scale: float = 4.0  # classifier-free guidance as sigma goes to 0; 1 means none
    cfg_scale_start: float | None = None  # the same at the highest sigma; None keeps it constant
    cfg_interval: tuple[float, float] | None = None  # sigmas with guidance; None guides everywhere
    control_scale: float = 1.0  # strength of control as sigma goes to 0; 0 leaves only the prior
    control_scale_start: float | None = None  # the same at the highest sigma; None: constant
    sigma_min: float | None = None  # lowest level of karras and exponential; None: the table's
    tau: float | None = None  # exponent of restoration guidance; larger is weaker, None is off
    # Restoration guidance is off in steps that end at or below this sigma; None: on in every step.
    tau_stop: float | None = 0.05
    # What restoration guidance pulls toward: the cleaned image, encoded again as the mean of its
    # posterior ("clean") or a sample from it ("clean_sampled", as released), or the latent of the
    # degraded image ("lq", as in the paper's Algorithm 1).
    center: Center = "clean"
    s_churn: float = 5.0  # amount of churn, for sigmas in s_tmin..s_tmax
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.01  # factor on the standard deviation of all noise added
    # Let churn raise sigma above the table's top, as released, although the network then gets the
    # top level's index and scaling.
    churn_beyond_table: bool = False
    eta: float = 1.0  # 0 is dpmpp_2m's ODE, 1 its SDE
    tile: int | None = None  # side in latent pixels, a multiple of 4; None: the whole at once
    overlap: float = 0.25  # minimum share of a tile that its neighbour covers too
    tile_batch: int = 4  # tiles evaluated together
    sequential_cfg: bool = False  # evaluate the halves of guidance one by one, to save memory

    def __post_init__(self) -> None:
        words = {"sampler": Sampler, "grid": Grid, "center": Center}
        for name, known in words.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(get_args(known))}"
                )
        for name, value in vars(self).items():
            if isinstance(value, str) and name not in words:
                raise ValueError(f"{name} must be a number, got {value!r}")
            if isinstance(value, float) and name in ("num_steps", "tile", "tile_batch"):
                raise ValueError(f"{name} must be a whole number, got {value}")
        if not 1 <= self.num_steps <= 1000:
            raise ValueError(f"num_steps must be in 1..1000, got {self.num_steps}")
        scales = ("cfg_scale", "cfg_scale_start", "control_scale", "control_scale_start")
        for name in (*scales, "tau", "tau_stop"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a number >= 0 or null, got {value}")
        for name in ("s_churn", "s_noise", "s_tmin", "s_tmax", "eta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.cfg_interval is not None:
            low, high = self.cfg_interval
            if not 0 <= low <= high:
                raise ValueError(
                    f"cfg_interval must be 0 <= low <= high, got {tuple(self.cfg_interval)}"
                )
        if self.sigma_min is not None and not 0 < self.sigma_min <= SIGMA_MAX:
            raise ValueError(
                f"sigma_min must be above 0 and at most {SIGMA_MAX}, got {self.sigma_min}"
            )
        if self.tile is not None and (self.tile < 8 or self.tile % 4):
            raise ValueError(
                f"tile must be a multiple of 4, at least 8, in latent pixels, got {self.tile}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        if self.tile_batch < 1:
            raise ValueError(f"tile_batch must be at least 1, got {self.tile_batch}")

    @property
    def needs_clean_center(self) -> bool:
        """Whether restoration guidance is on and needs the latent of the cleaned image."""
        return self.tau is not None and self.center != "lq"

    @property
    def cfg(self) -> float | Scale:
        """Guidance strength as a number or a function of sigma."""
        cfg = _linear(self.cfg_scale_start, self.cfg_scale)
        return cfg if self.cfg_interval is None else IntervalScale(cfg, *self.cfg_interval)

    @property
    def control(self) -> float | Scale:
        """Control strength as a number or a function of sigma."""
        return _linear(self.control_scale_start, self.control_scale)

    def sigmas(self) -> list[float]:
        """Return the noise levels, `num_steps` descending and 0."""
        if self.grid in ("table", "lcm"):
            return (table_sigmas if self.grid == "table" else lcm_sigmas)(self.num_steps)
        grid = {"karras": karras_sigmas, "exponential": exponential_sigmas}[self.grid]
        return grid(self.num_steps, sigma_min=self.sigma_min)

    def start(self, z_lq: Tensor, sigma: float, randn: Randn) -> Tensor:
        """Return the latent (B, C, h, w) that sampling starts from, at the highest `sigma`."""
        return randn(z_lq) * math.sqrt(1 + sigma**2)  # the table's marginal: variance 1 plus noise

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        randn: Randn,
        on_step: OnStep | None,
    ) -> Tensor:
        """Walk x (B, C, h, w), at noise level `sigmas[0]`, down `sigmas`; see samplers.py."""
        if self.sampler == "dpmpp_2m":
            return sample_dpmpp_2m(
                denoise,
                x,
                sigmas,
                eta=self.eta,
                s_noise=self.s_noise,
                randn=randn,
                on_step=on_step,
            )
        if self.sampler == "lcm":
            return sample_lcm(
                denoise, x, sigmas, s_noise=self.s_noise, randn=randn, on_step=on_step
            )
        sample = {"euler": sample_euler, "heun": sample_heun}[self.sampler]
        return sample(
            denoise,
            x,
            sigmas,
            s_churn=self.s_churn,
            s_noise=self.s_noise,
            s_tmin=self.s_tmin,
            s_tmax=self.s_tmax,
            sigma_cap=math.inf if self.churn_beyond_table else SIGMA_MAX,
            randn=randn,
            on_step=on_step,
        )


def _linear(start: float | None, end: float) -> float | Scale:
    return end if start is None else LinearScale(start, end)
