"""Curation: images/s of each step and runner, start-up, peak memory, and a finished run.

Run: python -m benchmarks.bench_curation --counts 1000 10000 --images DIR --output DIR
The images are made once and kept. A rate is that of the steady state: from the first outcome of
every worker to the last outcome, start-up apart.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import simplejpeg
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from src.cli import ROOT
from src.curate import settings_of
from src.curation.pipeline import Pipeline
from src.curation.runners import Outcome, Runner
from src.data.demo import load_photo

SIDE, BASES = 1024, 48
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
STEPS = ("filter", "dedup", "select", "caption", "shards")
UNIT = 100


def make_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 1024 x 1024, quality 95, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photos = [load_photo(name) for name in PHOTOS]
    bases = []
    for number in range(BASES):
        photo = photos[number % len(photos)]
        side = int(rng.integers(200, min(photo.size) + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        box = (left, top, left + side, top + side)
        image = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
        noisy = image + rng.normal(0, 4, image.shape)
        bases.append(noisy.clip(0, 255).astype(np.uint8))
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        shift = tuple(int(s) for s in rng.integers(SIDE, size=2))
        image = np.roll(bases[int(rng.integers(BASES))], shift, axis=(0, 1))
        image = np.ascontiguousarray(image[:, :: rng.choice([-1, 1])][..., rng.permutation(3)])
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(image, 95, "RGB", "444"))


class Memory:
    """Samples the memory of this process's children for as long as the block lasts."""

    def __enter__(self) -> "Memory":
        self.total = self.worker = 0.0  # MiB: sum of proportional set sizes; largest resident set
        self.running = True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    def _sample(self) -> None:
        while self.running:
            total = 0.0
            for child in psutil.Process().children(recursive=True):
                try:
                    memory = child.memory_full_info()
                except psutil.Error:
                    continue
                total += memory.pss / 2**20
                self.worker = max(self.worker, memory.rss / 2**20)
            self.total = max(self.total, total)
            time.sleep(0.5)


class Timed:
    """Notes when the outcomes of a runner come."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.times: dict[str, list[float]] = {}

    def run(self, step: Any, units: Sequence[Any], root: Path) -> Iterator[Outcome]:
        times = self.times.setdefault(step.name, [time.perf_counter()])
        for outcome in self.runner.run(step, units, root):
            times.append(time.perf_counter())
            yield outcome


def overrides(images: Path, output: Path, runner: str, workers: int) -> list[str]:
    return [
        f"input={images}",
        f"output={output}",
        f"unit_size={UNIT}",
        f"runner={runner}",
        f"runner.num_workers={workers}",
        "dedup.max_distance=3",
        "thresholds.bounds.sharpness=null",
        "thresholds.bounds.flat=null",
    ]


def measure(
    images: Path, output: Path, runner: str, workers: int, steps: Sequence[str]
) -> dict[str, Any]:
    """Run all steps; returns seconds and steady rate of each, and peak memory of the filter."""
    shutil.rmtree(output, ignore_errors=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("curate", overrides=overrides(images, output, runner, workers))
    timed = Timed(instantiate(cfg.runner, _convert_="all"))
    pipeline = Pipeline(settings_of(cfg), timed)
    result: dict[str, Any] = {}
    for step in steps:
        start = time.perf_counter()
        with Memory() as memory:
            pipeline.run([step])
        result[step] = {"seconds": time.perf_counter() - start}
        result[step] |= {"total_mib": memory.total, "worker_mib": memory.worker}
        times = timed.times.get(step) or timed.times.get(f"{step}-positive")
        if times and len(times) > workers + 2:
            first = times[workers]
            result[step]["start"] = times[1] - times[0]
            size = UNIT if step != "shards" else 1000
            result[step]["rate"] = (len(times) - 1 - workers) * size / (times[-1] - first)
    return result


def finished_seconds(images: Path, output: Path, runner: str, workers: int) -> list[float]:
    """Time the command over finished work, three times."""
    command = [sys.executable, "-m", "src.curate", *overrides(images, output, runner, workers)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[200])
    parser.add_argument("--images", type=Path, default=Path("data/bench_images"))
    parser.add_argument("--output", type=Path, default=Path("data/bench_curation"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of the smallest count")
    parser.add_argument("--only-make", action="store_true")
    options = parser.parse_args()
    for count in options.counts:
        make_images(options.images / str(count), count)
    if options.only_make:
        return
    print(
        f"{os.cpu_count()} cores {platform.processor() or platform.machine()}, "
        f"{options.workers} workers, python {platform.python_version()}, ray {ray.__version__}, "
        f"numpy {np.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print("\n| images | runner | step | s | start s | images/s | tree MiB | largest MiB |")
    print("|---|---|---|---|---|---|---|---|")
    rates: dict[tuple[int, str], list[float]] = {}
    for count in options.counts:
        for number in range(options.rounds if count == min(options.counts) else 1):
            order = ("local", "ray") if number % 2 == 0 else ("ray", "local")
            for runner in order:
                images, output = options.images / str(count), options.output / runner
                few = runner == "ray" and count > min(options.counts)
                steps = STEPS[:1] if few else STEPS
                result = measure(images, output, runner, options.workers, steps)
                for step, row in result.items():
                    rate, start = row.get("rate"), row.get("start")
                    print(
                        f"| {count} | {runner} | {step} | {row['seconds']:.1f} | "
                        f"{'' if start is None else f'{start:.1f}'} | "
                        f"{'' if rate is None else f'{rate:.1f}'} | {row['total_mib']:.0f} | "
                        f"{row['worker_mib']:.0f} |",
                        flush=True,
                    )
                if "rate" in result["filter"]:
                    rates.setdefault((count, runner), []).append(result["filter"]["rate"])
                if runner == "local" and number == 0:
                    again = finished_seconds(images, output, runner, options.workers)
                    print(f"\nFinished run over {count}: {statistics.median(again):.2f} s\n")
                shutil.rmtree(output, ignore_errors=True)
    for count in options.counts:
        if (count, "ray") in rates:
            local, other = (statistics.median(rates[count, r]) for r in ("local", "ray"))
            print(f"\nRay / local at {count} images, filter: {other / local:.3f} of the rate")


if __name__ == "__main__":
    main()
