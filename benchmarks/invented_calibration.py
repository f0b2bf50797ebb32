"""Whether NAME.invented.png tells the truth: error by tenths of the map, on pairs.

Restores LQ images several times with the model that ships, and compares with HQ. Says also what the
mean of the samples gains. Nothing is fitted: the map is measured as it is written.

Run:  python benchmarks/invented_calibration.py hq=DIR lq=DIR [count=12] [samples=4] [side=128]
      [free=true]   without the default's pull: sampler.tau=null options.strength=1
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.images import list_images, read_image, to_unit
from open_supir.evaluation.calibration import deciles, error_levels, rank_correlation
from open_supir.inference.captioner import NoCaptioner
from open_supir.inference.model import Model


def middle(path: Path, side: int) -> Tensor:
    """Return the centre (3, side, side) of an image in [0, 1]."""
    image = to_unit(read_image(path))
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    return image[:, top : top + side, left : left + side]


def psnr(errors: list[Tensor]) -> float:
    """Return the mean PSNR in dB of pictures, by their errors in levels."""
    values = [-20 * (picture.square().mean().sqrt() / 255).log10() for picture in errors]
    return float(torch.stack(values).mean())


def main() -> None:
    """Print the tables as Markdown."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count, samples = int(options.get("count", "12")), int(options.get("samples", "4"))
    side = int(options.get("side", "128"))
    model = Model.find("shipped:supir_tiny.safetensors", weights={}, runs_dir="runs")
    is_free = options.get("free") == "true"
    sampler, strength = ({"tau": None}, {"strength": 1.0}) if is_free else ({}, {})
    wanted = model.options(sampler, {"num_samples": samples, "seed": 0, **strength})
    restorer = model.load(wanted, captioner=NoCaptioner(), device=torch.device("cpu"))
    partners = {path.stem: path for path in list_images(options["lq"])}
    maps, errors, of_mean = [], [], []
    for path in list_images(options["hq"])[:count]:
        hq, lq = middle(path, side), middle(partners[path.stem], side)
        result = restorer(lq[None])
        maps.append(result.disagreement)
        errors.append(error_levels(result.restored[0].clamp(0, 1), hq))
        of_mean.append(error_levels(result.average[0].clamp(0, 1), hq))
        print(f"{path.name}: {maps[-1].mean():.2f} levels, error {errors[-1].mean():.2f}",
              file=sys.stderr, flush=True)  # fmt: skip
    print("| tenth of the pixels | map up to | map, mean | error, RMS |\n|---|---|---|---|")
    for number, row in enumerate(deciles(maps, errors), start=1):
        print(f"| {number} | {row.upto:.1f} | {row.mean:.1f} | {row.error:.1f} |")
    means = [[torch.stack([picture.mean() for picture in kind])] for kind in (maps, errors)]
    print(f"\nRank correlation of pixels {rank_correlation(maps, errors):.3f}")
    if count >= 10:
        print(f"of pictures, by their means, {rank_correlation(*means):.3f}")
    print(f"\nPSNR: one sample {psnr(errors):.2f} dB, the mean of {samples} {psnr(of_mean):.2f} dB")


if __name__ == "__main__":
    main()
