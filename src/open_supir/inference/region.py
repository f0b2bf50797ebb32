"""Regions: a mask says how much of a photograph is restored where, 0 nothing and 1 fully."""

import os
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from open_supir.base.images import read_image, resize
from open_supir.base.images.listing import MASK_SUFFIX

FEATHER = 8  # pixels inside a border over which the restoration sets in


def mask_of(photo: Path, given: str | None) -> Path | None:
    """Return the mask of a photograph: the one given, else the one beside it, else None.

    Beside `photo.jpg` it is named `photo.mask.png`, or `photo.jpg.mask.png`.

    Raises:
        FileNotFoundError: The one given does not exist.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"options.mask={given}: no such file")
        return Path(given)
    names = (photo.stem + MASK_SUFFIX, photo.name + MASK_SUFFIX)
    files = [photo.with_name(name) for name in names]
    return next((file for file in files if os.path.isfile(file)), None)  # names may be too long


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Read a mask as (1, 1, h, w) in [0, 1]: black is 0, white 1; resized to (h, w).

    Raises:
        ValueError: It is not a readable image.
    """
    grey = read_image(path).float().mean(dim=0, keepdim=True) / 255
    return resize(grey, size).clamp(0, 1)[None]


def feathered(mask: Tensor, image: Tensor) -> Tensor:
    """Return a mask that rises over some pixels inside its borders, and is nowhere above `mask`.

    What is black stays black, and even grey stays as it is.

    Args:
        mask: (1, 1, H, W) in [0, 1].
        image: (1, 3, H, W), the image that it belongs to.

    Raises:
        ValueError: Their sizes differ.
    """
    if mask.shape != (1, 1, *image.shape[-2:]):
        size = tuple(image.shape[-2:])
        raise ValueError(f"expected a mask (1, 1, {size[0]}, {size[1]}), got {tuple(mask.shape)}")
    side, pad = 2 * FEATHER + 1, (FEATHER,) * 4
    eroded = -F.max_pool2d(-mask, side, stride=1, padding=FEATHER)
    return F.avg_pool2d(F.pad(eroded, pad, mode="replicate"), side, stride=1)
