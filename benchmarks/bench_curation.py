"""Curation: images/s of each step and runner, start-up, peak memory, and a finished run.

Run: python -m benchmarks.bench_curation --counts 1000 10000 --images DIR --output DIR
     python -m benchmarks.bench_curation --also captioner=local captioner.model=DIR
The images are made once and kept. Rates are steady-state: the first fifth of the units and each
worker's last unit are excluded. CPU time covers all processes, including Ray's own; the difference
between the largest and the smallest count excludes start-up.
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

from open_supir.base.places import CHECKOUT, CONF
from open_supir.commands.curate import BUILD, plain
from open_supir.curation.configured import settings_of
from open_supir.curation.pipeline import Pipeline
from open_supir.curation.runners import Outcome, Runner
from open_supir.data.demo import load_photo

SIDE, BASES = 1024, 48
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
STEPS = ("filter", "dedup", "select", "caption", "shards")
UNIT = 100
NUMBERS = ("seconds", "cpu", "start", "rate", "total_mib", "worker_mib")


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
        base, turn, channels = rng.integers(BASES), rng.choice([-1, 1]), rng.permutation(3)
        if path.is_file():
            continue
        image = np.roll(bases[int(base)], shift, axis=(0, 1))[:, ::turn][..., channels]
        path.parent.mkdir(exist_ok=True)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95, "RGB", "444")
        path.write_bytes(data)


class Watch:
    """Samples memory and CPU time of this process's children during the block."""

    def __enter__(self) -> "Watch":
        self.total = self.worker = 0.0  # MiB: sum of proportional set sizes; largest resident set
        self.own = time.process_time()
        self.before = {child.pid: _cpu(child) for child in _children()}
        self.cpu: dict[int, float] = {}
        self.running = True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()
        self.own = time.process_time() - self.own

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this process and of all below it, Ray's own processes included."""
        return self.own + sum(s - self.before.get(pid, 0.0) for pid, s in self.cpu.items())

    def _sample(self) -> None:
        while self.running:
            total = 0.0
            for child in _children():
                try:
                    memory = child.memory_full_info()
                    self.cpu[child.pid] = _cpu(child)
                except psutil.Error:
                    continue
                total += memory.pss / 2**20
                self.worker = max(self.worker, memory.rss / 2**20)
            self.total = max(self.total, total)
            time.sleep(0.2)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Timed:
    """Records when a runner's outcomes arrive."""

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
        "thresholds.bounds.focus=null",
        "thresholds.bounds.flat=null",
    ]


def measure(
    images: Path,
    output: Path,
    runner: str,
    workers: int,
    steps: Sequence[str],
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """Run steps; returns seconds, CPU seconds, steady rate and peak memory of each."""
    shutil.rmtree(output, ignore_errors=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("curate", overrides=[*overrides(images, output, runner, workers), *also])
    timed = Timed(instantiate(cfg.runner, _convert_="all"))
    pipeline = Pipeline(settings_of(plain(cfg), BUILD), timed)
    result: dict[str, Any] = {}
    for step in steps:
        start = time.perf_counter()
        with Watch() as watch:
            pipeline.run([step])
        result[step] = {"seconds": time.perf_counter() - start, "cpu": watch.cpu_seconds}
        result[step] |= {"total_mib": watch.total, "worker_mib": watch.worker}
        times = timed.times.get(step) or timed.times.get(f"{step}-positive")
        if times and len(times) > 2 * workers + 2:
            result[step]["start"] = times[1] - times[0]
            sizes = {"shards": cfg.shards.shard_size}
            sizes["negatives"] = cfg.negatives.count / (len(times) - 1)
            size = sizes.get(step, UNIT)
            first, last = max(workers, len(times) // 5), len(times) - 1 - workers
            if last > first:
                result[step]["rate"] = (last - first) * size / (times[last] - times[first])
    return result


def finished_seconds(images: Path, output: Path, runner: str, workers: int) -> list[float]:
    """Time the command on finished work, three times."""
    command = [sys.executable, "-m", "src.curate", *overrides(images, output, runner, workers)]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[200, 400])
    parser.add_argument("--images", type=Path, default=Path("data/bench_images"))
    parser.add_argument("--output", type=Path, default=Path("data/bench_curation"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runners", nargs="+", default=["local", "ray"])
    parser.add_argument("--steps", nargs="+", default=list(STEPS))
    parser.add_argument("--also", nargs="+", default=[], help="overrides of conf/curate.yaml")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} cores {platform.processor() or platform.machine()}, "
        f"{options.workers} workers, python {platform.python_version()}, ray {ray.__version__}, "
        f"numpy {np.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print("\n| images | runner | step | s | CPU s | start s | images/s | tree MiB | largest MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    cpu: dict[tuple[str, int], float] = {}
    rates: dict[tuple[str, int], float] = {}
    finished: list[str] = []
    for count in options.counts:
        images = options.images / str(count)
        make_images(images, count)
        for runner in options.runners:
            output = options.output / runner
            result = measure(images, output, runner, options.workers, options.steps, options.also)
            ray.shutdown()  # else its processes count in what comes next
            for step, row in result.items():
                cells = [f"{row[n]:.1f}" if n in row else "" for n in NUMBERS]
                print(f"| {count} | {runner} | {step} | {' | '.join(cells)} |", flush=True)
            if "filter" in result:
                cpu[runner, count] = result["filter"]["cpu"]
                rates[runner, count] = result["filter"].get("rate", 0.0)
            if runner == "local" and options.steps == list(STEPS) and not options.also:
                again = finished_seconds(images, output, runner, options.workers)
                finished.append(f"{statistics.median(again):.2f} s over {count} images")
            shutil.rmtree(output, ignore_errors=True)
    if finished:
        print(f"\nThe command over finished work, median of 3: {'; '.join(finished)}.")
    low, high = min(options.counts), max(options.counts)
    for runner in options.runners if low < high and cpu else ():
        extra = 1e3 * (cpu[runner, high] - cpu[runner, low]) / (high - low)
        print(f"\nfilter, {runner}: {extra:.1f} CPU ms an image, start-up apart")


if __name__ == "__main__":
    main()
