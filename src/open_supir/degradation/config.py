"""Ranges from which degradation parameters are drawn: frozen dataclasses, validated once.

Units: noise sigma in [0, 255] levels, JPEG quality in [1, 100], angles in radians, scales as
output / input side. The structure is the second-order model of Real-ESRGAN (arXiv:2107.10833);
everything is off by default.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from open_supir.base.registry import register

FAMILIES = (
    "iso",
    "aniso",
    "generalized_iso",
    "generalized_aniso",
    "plateau_iso",
    "plateau_aniso",
)
MODES = ("area", "bilinear", "bicubic")
Antialias = Literal[False, True, "pillow"]
MAX_KERNEL = 21  # side of every stored kernel; smaller ones sit centred in zeros


def _check_range(name: str, value: tuple[float, ...], low: float, high: float) -> None:
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(
            f"{name} must be (low, high) with {low} <= low <= high <= {high}, got {value}"
        )


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value}")


def _check_distribution(name: str, value: tuple[float, ...], count: int) -> None:
    if len(value) != count or min(value) < 0 or abs(sum(value) - 1) > 1e-6:
        raise ValueError(f"{name} must be {count} probabilities that sum to 1, got {value}")


def _check_modes(name: str, value: tuple[str, ...]) -> None:
    unknown = [mode for mode in value if mode not in MODES]
    if not value or unknown:
        raise ValueError(f"{name} must list resize modes from {', '.join(MODES)}, got {value}")


def _check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _as_tuples(config: object, names: Iterable[str]) -> None:
    """Turn lists (as YAML gives them) into tuples, so that a frozen config can be hashed."""
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


@register
@dataclass(frozen=True, kw_only=True)
class BlurConfig:
    """Blur kernels: a sinc with probability `sinc_prob`, otherwise one of `families`."""

    prob: float = 0.0  # share of samples that are blurred at all
    # probability of each of `FAMILIES`
    families: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    sinc_prob: float = 0.0  # share of blurred samples whose kernel is a sinc low-pass
    sigma: tuple[float, float] = (0.2, 3.0)  # standard deviation along each axis, in pixels
    # exponent of generalised Gaussians: U(low, 1) or U(1, high), half each
    beta_generalized: tuple[float, float] = (0.5, 4.0)
    beta_plateau: tuple[float, float] = (1.0, 2.0)  # exponent of plateau kernels, likewise
    # smallest and largest window side, both odd; uniform over the odd sides between
    sizes: tuple[int, int] = (7, 21)

    def __post_init__(self) -> None:
        _as_tuples(self, ("families", "sigma", "beta_generalized", "beta_plateau", "sizes"))
        _check_probability("blur.prob", self.prob)
        _check_probability("blur.sinc_prob", self.sinc_prob)
        _check_distribution("blur.families", self.families, len(FAMILIES))
        _check_range("blur.sigma", self.sigma, 1e-3, 100)
        for name in ("beta_generalized", "beta_plateau"):
            _check_range(f"blur.{name}", getattr(self, name), 0.05, 20)
            if not getattr(self, name)[0] <= 1 <= getattr(self, name)[1]:
                raise ValueError(f"blur.{name} must contain 1, got {getattr(self, name)}")
        _check_range("blur.sizes", self.sizes, 1, MAX_KERNEL)
        if any(side % 2 == 0 for side in self.sizes):
            raise ValueError(f"blur.sizes must be odd, got {self.sizes}")


@register
@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One round of blur, resize, noise and JPEG."""

    prob: float = 1.0  # share of samples that pass through blur, resize and noise of this stage
    blur: BlurConfig = field(default_factory=BlurConfig)  # blur kernels
    # probabilities of scaling up, down, or keeping the size
    resize_prob: tuple[float, float, float] = (0.0, 0.0, 1.0)
    up: tuple[float, float] = (1.0, 1.5)  # scale when scaling up
    down: tuple[float, float] = (0.15, 1.0)  # scale when scaling down
    modes: tuple[str, ...] = MODES  # interpolation modes, drawn uniformly
    noise_prob: float = 0.0  # share of samples that get noise
    # share of noisy samples that get Gaussian noise; the others get Poisson noise
    gaussian_prob: float = 0.5
    sigma: tuple[float, float] = (1.0, 30.0)  # Gaussian standard deviation in [0, 255] units
    poisson: tuple[float, float] = (0.05, 3.0)  # factor on the Poisson noise
    gray_prob: float = 0.4  # share of noisy samples whose noise is the same in all channels
    jpeg_prob: float = 0.0  # share of samples that are compressed
    jpeg: tuple[float, float] = (30.0, 95.0)  # JPEG quality

    def __post_init__(self) -> None:
        _as_tuples(self, ("resize_prob", "up", "down", "modes", "sigma", "poisson", "jpeg"))
        for name in ("prob", "noise_prob", "gaussian_prob", "gray_prob", "jpeg_prob"):
            _check_probability(name, getattr(self, name))
        _check_distribution("resize_prob (up, down, keep)", self.resize_prob, 3)
        _check_range("up", self.up, 1, 4)
        _check_range("down", self.down, 0.01, 1)
        _check_modes("modes", self.modes)
        _check_range("sigma", self.sigma, 0, 255)
        _check_range("poisson", self.poisson, 0, 100)
        _check_range("jpeg", self.jpeg, 1, 100)


@register
@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """Two stages, then a final resize with sinc filter, before or after the second JPEG."""

    # first stage; sizes are relative to the HQ image
    first: StageConfig = field(default_factory=StageConfig)
    # Second stage; sizes are relative to the final LQ size, as in Real-ESRGAN. Its JPEG runs even
    # where `second.prob` skips the rest of the stage.
    second: StageConfig = field(default_factory=StageConfig)
    scale: float = 4.0  # HQ side / LQ side
    sinc_prob: float = 0.0  # share of samples with a final sinc filter
    # its cutoff in radians per pixel
    sinc_cutoff: tuple[float, float] = (1.0471975511965976, 3.141592653589793)
    sinc_sizes: tuple[int, int] = (7, 21)  # its smallest and largest side, odd
    # share of samples resized and filtered before the second JPEG; the others after
    order_prob: float = 0.5
    modes: tuple[str, ...] = MODES  # interpolation modes of the final resize
    # bring LQ back to the HQ size: "bicubic", "random" mode, or None for a small LQ
    resize_back: Literal["bicubic", "random"] | None = "bicubic"
    identity_prob: float = 0.0  # share of samples that are not degraded
    # "libjpeg", or "diffjpeg" for the arithmetic of Real-ESRGAN's training code
    jpeg: Literal["libjpeg", "diffjpeg"] = "libjpeg"
    # "size" keeps image edges aligned; "scale_factor" drifts like Real-ESRGAN's first resize
    align: Literal["size", "scale_factor"] = "size"
    # True widens bilinear and bicubic filters when scaling down; "pillow" resizes as
    # Pillow does 8-bit images, to the bit: cubics of a = -0.5 when scaling up and down
    antialias: Antialias = False
    # "unique" counts the image's distinct levels, "fixed" takes 256
    poisson_levels: Literal["unique", "fixed"] = "unique"
    # fewest levels that "unique" assumes; without it a flat image drowns in noise
    poisson_floor: int = 64
    sharpen: bool = False  # make LQ from the sharpened HQ, see `ops.unsharp`
    round: bool = True  # round LQ to multiples of 1/255
    min_side: int = 1  # smallest side of any intermediate image

    @property
    def antialias_back(self) -> Antialias:
        """How LQ is enlarged."""
        return "pillow" if self.antialias == "pillow" else False

    @property
    def fewest_levels(self) -> int:
        """Argument `floor` of `ops.shot_noise`."""
        return 256 if self.poisson_levels == "fixed" else self.poisson_floor

    def __post_init__(self) -> None:
        _as_tuples(self, ("sinc_cutoff", "sinc_sizes", "modes"))
        for name in ("sinc_prob", "order_prob", "identity_prob"):
            _check_probability(name, getattr(self, name))
        _check_range("sinc_cutoff", self.sinc_cutoff, 0.1, 3.1416)
        _check_range("sinc_sizes", self.sinc_sizes, 1, MAX_KERNEL)
        if any(side % 2 == 0 for side in self.sinc_sizes):
            raise ValueError(f"sinc_sizes must be odd, got {self.sinc_sizes}")
        _check_modes("modes", self.modes)
        _check_choice("resize_back", self.resize_back, ("bicubic", "random", None))
        _check_choice("jpeg", self.jpeg, ("libjpeg", "diffjpeg"))
        _check_choice("align", self.align, ("size", "scale_factor"))
        _check_choice("antialias", self.antialias, (False, True, "pillow"))
        if self.antialias == "pillow" and self.align != "size":
            raise ValueError("antialias=pillow needs align=size: Pillow's resizing does not drift")
        _check_choice("poisson_levels", self.poisson_levels, ("unique", "fixed"))
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")
        if not 1 <= self.poisson_floor <= 256:
            raise ValueError(f"poisson_floor must be in [1, 256], got {self.poisson_floor}")
        if self.min_side < 1:
            raise ValueError(f"min_side must be at least 1, got {self.min_side}")
