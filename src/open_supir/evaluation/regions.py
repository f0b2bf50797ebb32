"""Regions that metrics are measured on, by masks: faces or text alone.

Shapes: H W image size.
"""

from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.images.listing import MASK_SUFFIX
from open_supir.base.run_folders import config_digest
from open_supir.evaluation.samples import Sample
from open_supir.inference.region import read_mask

HALF = 0.5  # what is brighter in a mask counts


class Regions:
    """Masks of a set of images: one file for all, or a folder of NAME.mask.png or NAME.png.

    Raises:
        FileNotFoundError: There is neither.
    """

    def __init__(self, place: Path) -> None:
        if not place.exists():
            raise FileNotFoundError(
                f"metrics.mask={place}: no such file or folder; expected one mask for all images, "
                f"or a folder with NAME{MASK_SUFFIX} of each"
            )
        self.place = place

    def digest(self) -> str:
        """Return a hash of all masks, for the settings of records."""
        files = sorted(self.place.glob("*.png")) if self.place.is_dir() else [self.place]
        return config_digest({file.name: sha256_of(file) for file in files})

    def of(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """Return where a sample is measured: (H, W) of `size`, bool.

        Raises:
            ValueError: It has no mask, or one that is not readable, or without anything white.
        """
        path = self.place
        if path.is_dir():
            stem = (sample.source or Path(sample.name)).stem
            names = [stem + MASK_SUFFIX, f"{stem}.png"]
            found = [path / name for name in names if (path / name).is_file()]
            if not found:
                raise ValueError(f"no mask: neither {names[0]} nor {names[1]} in {path}")
            path = found[0]
        mask = read_mask(path, size)[0, 0] > HALF
        if not mask.any():
            raise ValueError(f"mask {path} has no white pixels")
        return mask


def cut_to(
    mask: Tensor, restored: Tensor, reference: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Cut pictures (1, 3, H, W) to the rectangle around a mask (H, W).

    With a reference, what is black within the rectangle is taken from it, so that only differences
    in the region count.
    """
    rows, columns = (torch.nonzero(mask.any(dim=axis)).flatten() for axis in (1, 0))
    box = (
        ...,
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
    if reference is None:
        return restored[box], None
    return torch.where(mask[box], restored[box], reference[box]), reference[box]
