"""Regions: a mask says how much of a photograph is restored where, 0 nothing and 1 fully."""

import logging
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.files import printable
from open_supir.base.images import read_photo, resize
from open_supir.base.images.listing import MASK_SUFFIX

log = logging.getLogger(__name__)

FEATHER = 16  # pixels inside a border over which the restoration sets in


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

    A mask of another shape is stretched, with a warning.

    Raises:
        ValueError: It is not a readable image, or transparent in places.
    """
    try:
        photo = read_photo(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"mask {path}: {error}") from error
    if photo.alpha is not None:
        raise ValueError(
            f"mask {path} is transparent in places, which says neither black nor white; "
            "save it without transparency"
        )
    height, width = photo.rgb.shape[-2:]
    if min(abs(width - size[1] * height / size[0]), abs(height - size[0] * width / size[1])) > 1:
        log.warning(
            "mask %s: %d x %d, stretched to %d x %d", printable(path), width, height, *size[::-1]
        )
    return resize(photo.rgb.mean(dim=0, keepdim=True), size).clamp(0, 1)[None]


def feathered(mask: Tensor, image: Tensor) -> Tensor:
    """Return a mask that rises over some pixels inside its borders, and is nowhere above `mask`.

    What is black stays black, and even grey stays as it is. A narrow part rises faster, so that its
    middle reaches the mask.

    Args:
        mask: (1, 1, H, W) in [0, 1].
        image: (1, 3, H, W), the image that it belongs to.

    Raises:
        ValueError: Their sizes differ.
    """
    if mask.shape != (1, 1, *image.shape[-2:]):
        size = tuple(image.shape[-2:])
        raise ValueError(f"expected a mask (1, 1, {size[0]}, {size[1]}), got {tuple(mask.shape)}")
    total = eroded = mask
    for _ in range(FEATHER - 1):
        eroded = -_highest_around(-eroded, 1)
        total = total + eroded
    ramp = total / FEATHER  # of black and white: the distance to black, at most FEATHER
    reached, wanted = _highest_around(ramp, FEATHER), _highest_around(mask, FEATHER)
    return torch.minimum(mask, ramp * wanted / reached.clamp(min=torch.finfo(mask.dtype).tiny))


def _highest_around(values: Tensor, reach: int) -> Tensor:
    """Return the maximum over squares of 2 reach + 1 a side: windows grow, one side at a time."""
    values, side = F.pad(values, (reach,) * 4, mode="replicate"), 2 * reach + 1
    for axis in (-2, -1):
        width = 1
        while width < side:
            step = min(width, side - width)
            count = values.shape[axis] - step
            values = torch.maximum(values.narrow(axis, 0, count), values.narrow(axis, step, count))
            width += step
    return values
