"""Speed of the training loader against decode + crop alone and against plain webdataset + Pillow.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_loader [--images 96] [--rounds 5]

All take turns in each round on the same 1024 x 1024 JPEG files, so that a busy machine slows all
alike. CPU time is what is compared; medians over rounds. Pipelines with two workers are compared
with decode + crop in two processes at once, for two busy cores slow each other down.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from src.data import CropPolicy, RestorationDataModule, SourceConfig
from src.data.demo import load_photo
from src.data.order import Mixture, SourceOrder
from src.data.shards import ShardFolder, StoredSample, read_manifest, write_shards

PHOTOS = ("astronaut.png", "motorcycle_left.png", "retina.jpg", "ihc.png", "hubble_deep_field.jpg")
CROP, BATCH = 512, 8
TWO = ("2 workers", "2 processes")


def make_shards(root: Path, count: int) -> None:
    """Write `count` noisy 1024 x 1024 photographs at quality 95."""
    photos = [load_photo(name) for name in PHOTOS]
    rng = np.random.default_rng(0)

    def samples() -> Iterator[StoredSample]:
        for i in range(count):
            photo = photos[i % len(photos)]
            side = int(rng.integers(400, min(photo.size) + 1))
            left = int(rng.integers(photo.width - side + 1))
            top = int(rng.integers(photo.height - side + 1))
            box = (left, top, left + side, top + side)
            image = np.asarray(photo.resize((1024, 1024), Image.Resampling.BICUBIC, box=box))
            noisy = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
            data = simplejpeg.encode_jpeg(noisy, 95, "RGB", "444")
            yield StoredSample(key=f"k{i:05d}", image=data, caption="a photograph of something")

    write_shards(root / "main", samples(), prefix="bench", shard_size=32)


def in_memory(root: Path) -> Callable[[int], int]:
    """Baseline (a): bytes already in memory; decode, native crop, stack."""
    folder = ShardFolder(root / "main", read_manifest(root / "main"))
    files = [folder.read(s, i).image for s, e in enumerate(folder.entries) for i in range(e.count)]
    rng = np.random.default_rng(0)

    def run(count: int) -> int:
        batch = []
        for number in range(count):
            image = simplejpeg.decode_jpeg(files[number % len(files)])
            top, left = rng.integers(1024 - CROP + 1, size=2)
            batch.append(image[top : top + CROP, left : left + CROP])
            if len(batch) == BATCH:
                torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
                batch = []
        return count

    return run


def in_two_processes(run: Callable[[int], int], count: int) -> int:
    """Baseline (a) twice at once: what two busy cores leave of one another."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(count // 2,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return count // 2 * 2


def plain_webdataset(root: Path, count: int, workers: int) -> int:
    """Baseline (b): what webdataset's README shows, with Pillow."""

    def make(sample: tuple[Image.Image, str]) -> tuple[torch.Tensor, str]:
        image = np.asarray(sample[0])
        top, left = np.random.randint(1024 - CROP + 1, size=2)
        crop = np.ascontiguousarray(image[top : top + CROP, left : left + CROP])
        return torch.from_numpy(crop).permute(2, 0, 1), sample[1]

    urls = sorted(str(path) for path in (root / "main").glob("*.tar"))
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(100)  # type: ignore
    data = data.decode("pil").to_tuple("jpg", "txt").map(make).batched(BATCH).repeat()
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers)  # type: ignore
    return take(loader, count)


def ours(root: Path, count: int, workers: int) -> int:
    """The training loader as it is, native crops."""
    module = RestorationDataModule(
        root,
        {"main": SourceConfig(weight=1)},
        crop_size=CROP,
        global_batch=BATCH,
        num_workers=workers,
        crop=CropPolicy(native=1, area=0, whole=0),
        log_dir=root,
    )
    module.setup("fit")
    return take(module.train_dataloader(), count)


def take(loader: DataLoader, count: int) -> int:
    """Take about `count` images; the workers are gone when this returns."""
    seen, iterator = 0, iter(loader)
    while seen < count:
        batch = next(iterator)
        seen += len(batch["hq"] if isinstance(batch, dict) else batch[0])
    del iterator
    return seen


def cost(run: Callable[[int], int], count: int) -> tuple[float, float]:
    """Return (CPU ms an image over this process and its workers, wall ms an image).

    The difference of a long and a short run, so that starting workers does not count.
    """
    short, long = measured(run, count), measured(run, 4 * count)
    images = long[2] - short[2]
    return 1e3 * (long[0] - short[0]) / images, 1e3 * (long[1] - short[1]) / images


def measured(run: Callable[[int], int], count: int) -> tuple[float, float, int]:
    """Return CPU seconds, wall seconds and images of one run."""

    def cpu() -> float:
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))

    start, wall = cpu(), time.perf_counter()
    seen = run(count)
    return cpu() - start, time.perf_counter() - wall, seen


def first_batch_seconds(root: Path, workers: int) -> float:
    """Return the seconds from building the data module to its first batch."""
    start = time.perf_counter()
    ours(root, 1, workers)
    return time.perf_counter() - start


def planning() -> str:
    """Plan and look up 20M samples in 20,000 shards."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    sources = [
        SourceOrder("positive", [1000] * 20_000, block=64, seed=1),
        SourceOrder("face", [1000] * 70, block=64, seed=1),
        SourceOrder("negative", [1000] * 100, block=64, seed=1),
    ]
    mixture = Mixture(sources, [20e6, 70e3, 100e3], seed=1)
    mixture.locate(0)
    planned = time.perf_counter() - start
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    positions = [p for step in range(80) for p in range(step * 16_384, step * 16_384 + 256)]
    start = time.process_time()
    for position in positions:
        mixture.locate(position)
    lookup = 1e6 * (time.process_time() - start) / len(positions)
    return f"planned in {planned:.3f} s and {used:.0f} MiB; look-up {lookup:.0f} us a sample"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_shards(root, options.images)
        size = sum(p.stat().st_size for p in (root / "main").glob("*.tar")) / options.images
        print(f"{options.images} images of {size / 1024:.0f} KiB; {os.cpu_count()} cores "
              f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
              f"webdataset {webdataset.__version__}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
        baseline = in_memory(root)
        runs: dict[str, Callable[[int], int]] = {
            "decode + crop": baseline,
            "loader, 0 workers": lambda n: ours(root, n, 0),
            "webdataset + Pillow, 0 workers": lambda n: plain_webdataset(root, n, 0),
            "decode + crop, 2 processes": lambda n: in_two_processes(baseline, n),
            "loader, 2 workers": lambda n: ours(root, n, 2),
            "webdataset + Pillow, 2 workers": lambda n: plain_webdataset(root, n, 2),
        }
        for run in runs.values():
            run(options.images)  # warm-up
        for _ in range(options.rounds):
            for name, run in runs.items():
                results.setdefault(name, []).append(cost(run, options.images))
        first = [first_batch_seconds(root, workers) for workers in (0, 2)]
    print("\n| pipeline | CPU ms/image | wall ms/image | decode + crop / this, CPU |")
    print("|---|---|---|---|")
    for name, values in results.items():
        cpu, wall = (statistics.median(v[i] for v in values) for i in (0, 1))
        reference = "decode + crop, 2 processes" if name.endswith(TWO) else "decode + crop"
        pairs = zip(results[reference], values, strict=True)
        ratio = statistics.median(r[0] / v[0] for r, v in pairs)
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {ratio:.2f} |")
    print(f"\nFirst batch: {first[0]:.2f} s with 0 workers, {first[1]:.2f} s with 2.")
    print(f"20M samples in 20,000 shards: {planning()}.")
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak, child = (resource.getrusage(kind).ru_maxrss >> 10 for kind in kinds)
    print(f"Peak memory of this process {peak} MiB, of a worker {child} MiB.")


if __name__ == "__main__":
    main()
