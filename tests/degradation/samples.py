"""Photographs from scikit-image's wheel, presets by name, and small measures that tests share."""

from pathlib import Path

import numpy as np
import skimage
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from open_supir.degradation import DegradationConfig, DegradationPipeline

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf/degradation").glob("*.yaml"))
# Operators that launch nothing.
VIEWS = set(
    "view _unsafe_view slice select unsqueeze expand permute transpose t split unbind alias detach"
    " split_with_sizes lift_fresh squeeze as_strided empty new_empty".split()
)
NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def photo(name: str, height: int, width: int, *, top: int = 60, left: int = 120) -> Tensor:
    """Return a (1, 3, H, W) crop in [0, 1]."""
    path = Path(skimage.__file__).parent / "data" / name
    pixels = np.asarray(Image.open(path).convert("RGB"))[top : top + height, left : left + width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def photos(count: int, height: int, width: int) -> Tensor:
    """Return (B, 3, H, W) crops in [-1, 1], every one another part of a photograph."""
    crops = [
        photo(NAMES[i % 4], height, width, top=20 + 8 * (i // 4), left=60 + 16 * (i // 4))
        for i in range(count)
    ]
    return torch.cat(crops) * 2 - 1


def preset(name: str, path: str = "loop") -> DegradationPipeline:
    """Build a preset; `path` as in DegradationPipeline."""
    return DegradationPipeline(config(name), path=path)  # type: ignore[arg-type]


def config(name: str) -> DegradationConfig:
    """Return a preset's ranges."""
    return instantiate(composed(name)).config


def composed(name: str) -> DictConfig:
    """Return a preset with what it takes from others."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("degrade", overrides=[f"degradation={name}"]).degradation


def psnr(image: Tensor, reference: Tensor, peak: float = 1.0) -> float:
    """Return dB over the whole batch."""
    return float(10 * torch.log10(peak**2 / (image - reference).square().mean()))
