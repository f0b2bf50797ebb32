"""Contact sheet of every preset on the same photographs and seeds, for docs/degradation.md.

    python benchmarks/degradation_sheet.py [docs/degradation_presets.jpg]

192 x 192 crops of photographs that scikit-image ships, seeds 4 to 7; small LQ is enlarged by
repeating pixels.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from open_supir.base.images import read_image, to_signed, to_uint8, to_unit
from open_supir.base.images.tensors import image_grid

ROOT = Path(__file__).parents[1]
CROPS = {  # top, left
    "astronaut.png": (0, 130),
    "coffee.png": (60, 160),
    "chelsea.png": (40, 120),
    "rocket.jpg": (180, 230),
}
SIDE, LABEL = 192, 18
SEEDS = torch.arange(4, 8)


def rows() -> dict[str, Tensor]:
    """Return (4, 3, S, S) in [0, 1] by name: HQ, then every preset."""
    folder = Path(skimage.__file__).parent / "data"
    crops = [
        read_image(folder / name)[:, top : top + SIDE, left : left + SIDE]
        for name, (top, left) in CROPS.items()
    ]
    hq = to_signed(torch.stack(crops))
    images = {"HQ": to_unit(hq)}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for path in sorted((ROOT / "conf/degradation").glob("*.yaml")):
            composed = compose("degrade", overrides=[f"degradation={path.stem}"])
            lq = instantiate(composed.degradation)(hq, SEEDS)
            enlarged = F.interpolate(to_unit(lq), size=(SIDE, SIDE), mode="nearest")
            images[path.stem] = enlarged
    return images


def label(grid: Tensor, name: str) -> Image.Image:
    """Return a row of pictures as one image with its name above."""
    pixels = np.ascontiguousarray(to_uint8(grid).permute(1, 2, 0).numpy())
    image = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + LABEL), "white")
    image.paste(Image.fromarray(pixels), (0, LABEL))
    draw = ImageDraw.Draw(image)
    draw.text((4, 1), name, fill="black", font=ImageFont.load_default(14))
    return image


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/degradation_presets.jpg")
    parts = [label(image_grid([list(images)]), name) for name, images in rows().items()]
    half = -(-len(parts) // 2)  # two columns: HQ above both
    columns = [parts[:half], parts[half:]]
    width = parts[0].width
    sheet = Image.new("RGB", (2 * width + 12, half * parts[0].height), "white")
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            sheet.paste(image, (column * (width + 12), row * image.height))
    sheet.save(target, quality=85)


if __name__ == "__main__":
    main()
