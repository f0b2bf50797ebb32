"""Validation and benchmark images: a folder of HQ photographs, or paired HQ and LQ folders.

Unlike the training reader, these readers accept any ordinary image file (see `images.read_image`).
A caption comes from the text file next to the HQ image that has the same name.

Shapes: B batch, H W crop size; LQ images have the size of their HQ image.
"""

from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from open_supir.base.images import list_images, read_image, resize
from open_supir.base.images.captions import caption_beside
from open_supir.base.images.tensors import resize_short_side
from open_supir.base.rng import keyed_rng
from open_supir.data.dataset import position_seed
from open_supir.data.samples import TrainingSample


class FolderDataset(Dataset[TrainingSample]):
    """Fixed crops of the images in a folder, each with a fixed seed.

    Sample i shows image i modulo the number of images: the first crop of an image is its centre,
    later ones are elsewhere. Images with a side shorter than the crop are enlarged.
    """

    def __init__(
        self, folder: str | Path, *, size: int, seed: int, count: int | None = None
    ) -> None:
        self.size, self.seed = size, seed
        self.paths = list_images(folder)
        self.count = len(self.paths) if count is None else count

    def __len__(self) -> int:
        return self.count

    def check(self) -> None:
        """Read the captions that will be asked for.

        Raises:
            ValueError: One is no readable text; the message names its file.
        """
        for path in self.paths[: self.count]:
            caption_beside(path)

    def __getitem__(self, index: int) -> TrainingSample:
        path = self.paths[index % len(self.paths)]
        return self.make_sample(path, read_image(path), index)

    def make_sample(self, path: Path, image: Tensor, index: int) -> TrainingSample:
        """Make a sample of a crop of a (3, H, W) uint8 image, with its actual size conditioning."""
        original = image.shape[-2:]
        image = enlarge(image, self.size)
        top, left = self.corner(image, index)
        crop = image[:, top : top + self.size, left : left + self.size]
        return TrainingSample(
            hq=crop.permute(1, 2, 0).contiguous().numpy(),
            caption=caption_beside(path),
            sizes=np.array([*original, top, left, self.size, self.size], dtype=np.float32),
            is_negative=False,
            source=path.parent.name,
            key=path.stem,
            seed=position_seed(self.seed, -1 - index),
        )

    def corner(self, image: Tensor, index: int) -> tuple[int, int]:
        """Return the top and left of sample `index`'s crop."""
        spare = (image.shape[-2] - self.size, image.shape[-1] - self.size)
        if index < len(self.paths):
            return spare[0] // 2, spare[1] // 2
        rng = keyed_rng("held-out crop", self.seed, index)
        return int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))


class PairDataset(Dataset[TrainingSample]):
    """Paired folders: HQ images with the LQ images of the same file name (suffixes may differ).

    An LQ image of another size (super-resolution benchmarks) is resized to the HQ size.

    Raises:
        ValueError: An HQ image has no partner, or two have the same name.
    """

    def __init__(
        self,
        hq: str | Path,
        lq: str | Path,
        *,
        size: int,
        seed: int,
        count: int | None = None,
    ) -> None:
        self.folder = FolderDataset(hq, size=size, seed=seed, count=count)
        lows = {path.stem: path for path in list_images(lq)}
        names = [path.stem for path in self.folder.paths]
        missing = [name for name in names if name not in lows]
        if missing:
            raise ValueError(f"{len(missing)} images of {hq} have no partner in {lq}: {missing[0]}")
        if len(set(names)) != len(names):
            raise ValueError(f"{hq}: two images of the same name cannot be paired")
        self.lows = [lows[name] for name in names]

    def __len__(self) -> int:
        return len(self.folder)

    def check(self) -> None:
        """Read the captions that will be asked for, as FolderDataset does."""
        self.folder.check()

    def __getitem__(self, index: int) -> TrainingSample:
        folder, number = self.folder, index % len(self.lows)
        image = read_image(folder.paths[number])
        height, width = image.shape[-2:]
        sample = folder.make_sample(folder.paths[number], image, index)
        low = enlarge(resize(read_image(self.lows[number]), (height, width)), folder.size)
        top, left = folder.corner(low, index)
        crop = low[:, top : top + folder.size, left : left + folder.size]
        sample["lq"] = crop.permute(1, 2, 0).contiguous().numpy()
        return sample


def enlarge(image: Tensor, size: int) -> Tensor:
    """Enlarge a (3, H, W) image if its shorter side is below `size`."""
    return resize_short_side(image, size) if min(image.shape[-2:]) < size else image
