"""Whether `src.fit_degradation` finds known ranges again, from 60 images each.

Ten presets are drawn, mild to strong. Crops of a folder's photographs are degraded by each preset
and written as files: as real JPEGs (even numbers), or as PNGs of which the quality must be found
in the pixels (odd). The clean pictures that the fit learns from are by `clean=`

- shared: other crops of the same photographs, so that only the degradation is unknown;
- halves: one half of the photographs, where the degraded crops come from the other half;
- demo: those of scikit-image, which the command takes if it is given none.

Criteria, set before the run:

- an end is found if it is within 25 % of the truth, or the truth is within the fit's 90 % interval;
- KS p > 0.01 for each of ten statistics, on held-out images of the preset against the fit's images
  of the same photographs, so that only the degradation differs; the true preset is the control,
  which fails where chance does. Beside it Bonferroni's correction for the ten: p > 0.001;
- the fit is nearer to held-out images than supir_q: the mean Wasserstein distance.

Run:  python benchmarks/fit_degradation.py photos=DIR clean=shared [count=10] [images=3500]
          [output=FILE.md]
"""

import dataclasses
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from open_supir.base.files import write_text
from open_supir.base.images import list_images
from open_supir.base.places import CONF
from open_supir.base.rng import keyed_rng
from open_supir.data.demo import clean_photos
from open_supir.degradation.config import DegradationConfig
from open_supir.degradation.fit import Comparison, Fit, FitSettings, compare, fit_ranges
from open_supir.degradation.fit_bank import degrade
from open_supir.degradation.fit_crops import CleanPictures, Photographs, read_photographs
from open_supir.degradation.fit_ranges import SEARCHED, Ranges
from open_supir.degradation.fit_sets import SHARES
from open_supir.degradation.statistics import NAMES
from open_supir.reports.tables import markdown_table

SIDE, PIXELS, IMAGES = 128, 10**8, 60
NEAR, LEAST_P = 0.25, 0.01
RANGES = (*SEARCHED, "jpeg")
CLEAN = ("shared", "halves", "demo")
Row = list[str]


def preset(number: int, count: int) -> Ranges:
    """Draw the preset of that number; strength rises with it."""
    rng, t = keyed_rng("fit presets", number), (number + 0.5) / count

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    blur, most = between(0.2, 0.6) + 0.5 * t, 1 - 0.4 * t * between(0.5, 1)
    sigma, poisson = 1 + 4 * t * between(0.5, 1.5), 0.05 + 0.3 * t * between(0.5, 1.5)
    best = between(88, 97) - 15 * t
    return Ranges(
        blur=(blur, blur + between(0.4, 1) + 1.2 * t),
        down=(most - between(0.2, 0.35), most),
        sigma=(sigma, sigma + (3 + 20 * t) * between(0.6, 1.4)),
        poisson=(poisson, poisson + (0.2 + 1.5 * t) * between(0.6, 1.4)),
        jpeg=(best - between(10, 25) - 20 * t, best),
        gaussian_prob=between(0.35, 0.75),
        gray_prob=between(0.2, 0.8),
        jpeg_prob=1.0,
    ).rounded()


def write_files(folder: Path, truth: Ranges, clean: CleanPictures, *, seed: int) -> Photographs:
    """Write degraded images as JPEG or PNG, and read them as the command does."""
    real = seed % 2 == 0
    made = dataclasses.replace(truth, jpeg_prob=0.0) if real else truth
    images, _ = degrade(made.config(), clean.crops(IMAGES, seed=seed), seed=seed)
    rng = keyed_rng("fit qualities", seed)
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if real:
            quality = round(float(rng.uniform(*truth.jpeg)))
            picture.save(folder / f"{number:02d}.jpg", quality=quality, subsampling="4:2:0")
        else:
            picture.save(folder / f"{number:02d}.png")
    return read_photographs(list_images(folder), side=SIDE, seed=0, max_pixels=PIXELS)


def read_both(paths: list[Path], design: str) -> tuple[CleanPictures, CleanPictures]:
    """Return the photographs that are degraded, and the clean pictures of the fit."""
    if design not in CLEAN:
        raise SystemExit(f"clean={design}: one of {', '.join(CLEAN)} is needed")
    theirs = paths[1::2] if design == "halves" else paths
    clean = {"shared": paths, "halves": paths[::2], "demo": clean_photos()}[design]
    first, second = (CleanPictures(p, side=SIDE, max_pixels=PIXELS) for p in (theirs, clean))
    return first, second


def held_out(truth: Ranges, clean: CleanPictures, *, seed: int) -> Photographs:
    """Return new images of a preset."""
    crops, quality = degrade(truth.config(), clean.crops(IMAGES, seed=seed), seed=seed)
    return Photographs(names=[], crops=crops, quality=quality, sources=Counter(), skipped=Counter())


def held(truth: Ranges, fit: Fit) -> dict[str, bool]:
    """Return by share whether the truth is in the interval."""
    return {n: fit.shares[n][0] <= getattr(truth, n) <= fit.shares[n][1] for n in SHARES}


def ends_found(truth: Ranges, fit: Fit) -> dict[str, list[tuple[bool, bool]]]:
    """Return for each range and end whether it is within 25 %, and whether in the interval."""
    found = {}
    for name in RANGES:
        pairs = zip(getattr(truth, name), getattr(fit.ranges, name), fit.ends[name], strict=True)
        found[name] = [
            (abs(got - true) <= NEAR * true, bool(low <= true <= high))
            for true, got, (low, high) in pairs
        ]
    return found


def rows_of(number: int, truth: Ranges, fit: Fit) -> list[Row]:
    """Return a row for each range of a preset."""
    rows, found = [], ends_found(truth, fit)
    for name in RANGES:
        true, got = getattr(truth, name), getattr(fit.ranges, name)
        sure = [f"{low:.3g} to {high:.3g}" for low, high in fit.ends[name]]
        said = ["25 %" if near else "interval" if inside else "**no**"
                for near, inside in found[name]]  # fmt: skip
        rows.append([str(number), name, f"{true[0]:.3g} to {true[1]:.3g}",
                     f"{got[0]:.3g} to {got[1]:.3g}", *sure, *said])  # fmt: skip
    return rows


def failed(comparison: Comparison, least: float = LEAST_P) -> list[str]:
    """Return the statistics with p at or below the limit."""
    return [name for name, p in zip(NAMES, comparison.p, strict=True) if p <= least]


def standard() -> DegradationConfig:
    """Return the preset supir_q."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("degrade", overrides=["degradation=supir_q"]).degradation).config


def summary(found: Sequence[dict[str, list[tuple[bool, bool]]]], fits: Sequence[Fit]) -> list[Row]:
    """Count the ends of each range over all presets."""
    rows = []
    for name in RANGES:
        ends, names = [end for one in found for end in one[name]], [f"{name} low", f"{name} high"]
        near, inside = sum(n for n, _ in ends), sum(i for _, i in ends)
        either, untold = (
            sum(n or i for n, i in ends),
            sum(n in f.untold for f in fits for n in names),
        )
        simulated = [100 * f.coverage[n] for f in fits for n in names if n in f.coverage]
        coverage = f"{np.mean(simulated):.0f} %" if simulated else ""
        rows.append([name, *map(str, (len(ends), near, inside, either, untold)), coverage])
    return rows


def judged(truth: Ranges, fit: Fit, theirs: CleanPictures, settings: FitSettings) -> Row:
    """Compare held-out images with the fit's, the true preset's and supir_q's."""
    new = held_out(truth, theirs, seed=6000 + settings.seed)
    presets = fit.ranges.config(), truth.config(), standard()
    ours, control, other = (compare(c, new, theirs, settings) for c in presets)
    names = [", ".join(failed(c)) or "none" for c in (ours, control)]
    strict = ["yes" if failed(c, LEAST_P / len(NAMES)) else "no" for c in (ours, control)]
    return [*names, *strict, *(f"{c.distance.mean():.2f}" for c in (ours, control, other))]


def main() -> None:
    """Run all presets and write the tables."""
    torch.set_num_threads(1)
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count, images = int(options.get("count", "10")), int(options.get("images", "3500"))
    output = Path(options.get("output", "benchmarks/results/fit_degradation_tables.md"))
    design = options["clean"]
    theirs, clean = read_both(list_images(options["photos"]), design)
    rows, found, tests, times = [], [], [], []
    fits, shares = [], []
    for number in range(count):
        truth, settings = preset(number, count), FitSettings(images=images, seed=number)
        with tempfile.TemporaryDirectory() as folder:
            given = write_files(Path(folder), truth, theirs, seed=5000 + number)
        start = time.process_time()
        fit = fit_ranges(given, clean, settings)
        times.append(time.process_time() - start)
        rows += rows_of(number, truth, fit)
        found.append(ends_found(truth, fit))
        fits.append(fit)
        shares.append(held(truth, fit))
        tests.append([str(number), *judged(truth, fit, theirs, settings)])
        print(*rows[-len(RANGES) :], tests[-1], f"{times[-1]:.0f} s", sep="\n", flush=True)
        write_text(output, tables(design, rows, summary(found, fits), shares, tests, times))


def tables(
    design: str,
    rows: list[Row],
    counts: list[Row],
    shares: list[dict[str, bool]],
    tests: list[Row],
    times: list[float],
) -> str:
    """Return all tables as Markdown."""
    heads = ["preset", "p <= 0.01: fit", "true", "p <= 0.001: fit", "true",
             "distance: fit", "true", "supir_q"]  # fmt: skip
    nearer = sum(float(row[5]) < float(row[7]) for row in tests)
    ends = ["low, 90 %", "high, 90 %", "low found", "high found"]
    return "\n\n".join([
        f"## clean={design}",
        markdown_table(["range", "ends", "within 25 %", "in the interval", "either",
                        "cannot be told", "coverage, simulated"], counts),
        "Shares in the interval: "
        + ", ".join(f"{name} {sum(s[name] for s in shares)} of {len(shares)}" for name in SHARES)
        + f". Nearer than supir_q: {nearer} of {len(tests)}. "
        f"A fit took {np.mean(times):.0f} s of processor time.",
        "Held-out images:", markdown_table(heads, tests),
        markdown_table(["preset", "range", "true", "fit", *ends], rows),
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
