"""What a fit finds: the ranges of a plain degradation, as a config and as a preset's file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from open_supir.degradation.config import BlurConfig, DegradationConfig, StageConfig

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Blur, reduction and enlargement, noise, JPEG, in this order, once; uniform between ends.

    Noise and JPEG are those of the file: at its own size, after the enlargement.
    """

    blur: Range  # standard deviation of a Gaussian, in pixels
    down: Range  # reduced size / size
    sigma: Range  # of Gaussian noise, in [0, 255] units
    poisson: Range  # factor on Poisson noise
    jpeg: Range  # quality
    gaussian_prob: float  # share of Gaussian noise; the others have Poisson noise
    gray_prob: float  # share of grey noise
    jpeg_prob: float  # share that is compressed

    def config(self) -> DegradationConfig:
        """Return the degradation of these ranges, at the size of HQ."""
        up = ("bilinear", "bicubic")
        return DegradationConfig(
            first=StageConfig(
                blur=BlurConfig(prob=1.0, sigma=self.blur, sizes=(21, 21)),
                resize_prob=(0.0, 1.0, 0.0),
                down=self.down,
            ),
            second=StageConfig(
                modes=up,
                noise_prob=1.0,
                gaussian_prob=self.gaussian_prob,
                sigma=self.sigma,
                poisson=self.poisson,
                gray_prob=self.gray_prob,
                jpeg_prob=self.jpeg_prob,
                jpeg=self.jpeg,
            ),
            scale=1.0,
            order_prob=1.0,
            modes=up,
            antialias=True,
        )

    def rounded(self) -> "Ranges":
        """Return the ranges with four significant digits."""
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            pair = tuple(float(f"{end:.4g}") for end in value) if isinstance(value, tuple) else None
            values[field.name] = pair or float(f"{value:.4g}")
        return Ranges(**values)

    def preset(self, comments: Sequence[str]) -> str:
        """Return the text of a preset's file: every key of the config, below lines of comments."""
        whole = {
            "_target_": "open_supir.degradation.DegradationPipeline",
            "_convert_": "all",
            "config": _node(self.config()),
            "path": "auto",
            "compile": None,
        }
        body = yaml.safe_dump(whole, sort_keys=False, default_flow_style=None, width=100)
        return "".join(f"# {line}\n" for line in comments) + body


def _node(config: Any) -> dict[str, Any]:
    """Return a config as plain values that Hydra builds it from."""
    node: dict[str, Any] = {"_target_": f"open_supir.degradation.{type(config).__name__}"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = _node(value)
        node[field.name] = list(value) if isinstance(value, tuple) else value
    return node


# Where a search looks. Blur of 0.2 pixels and noise of half a level leave no trace.
WIDEST = Ranges(
    blur=(0.2, 4.0),
    down=(0.2, 1.0),
    sigma=(0.5, 50.0),
    poisson=(0.04, 4.0),
    jpeg=(10.0, 100.0),
    gaussian_prob=0.5,
    gray_prob=0.5,
    jpeg_prob=1.0,
)
SEARCHED = ("blur", "down", "sigma", "poisson")
