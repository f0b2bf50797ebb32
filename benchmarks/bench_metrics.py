"""PSNR and SSIM against the three libraries: python benchmarks/bench_metrics.py pairs=20 side=1024

Each pair is measured by every implementation in turn, in the same process, and the order changes
from pair to pair. Medians of process CPU time, which other work on the machine affects little.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio as torchmetrics_psnr,
)
from torchmetrics.functional.image import (
    structural_similarity_index_measure as torchmetrics_ssim,
)

from open_supir.evaluation.metrics import METRICS

Score = Callable[[Tensor, Tensor], float]


def implementations() -> dict[str, dict[str, Score]]:
    """Return, for either metric, how ours and the three libraries measure one pair."""
    import pyiqa

    psnr, ssim = (METRICS[name].build(torch.device("cpu")) for name in ("psnr", "ssim"))
    pyiqa_psnr, pyiqa_ssim = (pyiqa.create_metric(name) for name in ("psnr", "ssimc"))

    def array(image: Tensor) -> np.ndarray:
        return image[0].permute(1, 2, 0).numpy()

    return {
        "PSNR": {
            "ours": psnr,
            "pyiqa": lambda x, y: float(pyiqa_psnr(x, y)),
            "torchmetrics": lambda x, y: float(torchmetrics_psnr(x, y, data_range=1.0)),
            "scikit-image": lambda x, y: float(
                peak_signal_noise_ratio(array(y), array(x), data_range=1.0)
            ),
        },
        "SSIM": {
            "ours": ssim,
            "pyiqa": lambda x, y: float(pyiqa_ssim(x, y)),
            "torchmetrics": lambda x, y: float(torchmetrics_ssim(x, y, data_range=1.0)),  # type: ignore[arg-type]
            "scikit-image": lambda x, y: float(
                structural_similarity(  # type: ignore[arg-type]
                    array(y), array(x), data_range=1.0, channel_axis=2,
                    gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                )
            ),
        },
    }  # fmt: skip


def measure(scores: dict[str, Score], pairs: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Return the process seconds of every pair, by implementation; a first pair warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in scores}
    names = list(scores)
    for index, pair in enumerate([pairs[0], *pairs]):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.process_time()
            scores[name](*pair)
            seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


def main(count: int, side: int) -> None:
    """Print the tables."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        hq = (torch.rand(1, 3, side, side, generator=generator) * 255).round() / 255
        lq = (hq + 0.05 * torch.randn(hq.shape, generator=generator)).clamp(0, 1)
        pairs.append(((lq * 255).round() / 255, hq))
    packages = ("torch", "pyiqa", "torchmetrics", "scikit-image")
    print(f"{count} pairs of {side}x{side}; {platform.machine()}, {torch.get_num_threads()} thread")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    for metric, scores in implementations().items():
        seconds = measure(scores, pairs)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        fastest = min(value for name, value in medians.items() if name != "ours")
        print(f"\n| {metric} | ms a pair | against the fastest library |\n|---|--:|--:|")
        for name, value in medians.items():
            print(f"| {name} | {1000 * value:.1f} | {value / fastest:.2f} |")


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    main(int(given.get("pairs", 20)), int(given.get("side", 1024)))
