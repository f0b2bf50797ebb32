"""Speed of the training loader against decode + crop alone and against plain webdataset + Pillow.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_loader [--images 64] [--rounds 5] [--chroma 444]

All take turns in each round on the same 1024 x 1024 JPEG files, so that a busy machine slows all of
them equally. CPU times are compared, as medians over rounds. Pipelines with two workers are
compared with decode + crop in two concurrent processes, because two busy cores slow each other
down. "Other JPEG" are the same photographs without the restart markers that let the loader decode
only some rows.
"""

import argparse
import io
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from open_supir.data import CropPolicy, SourceConfig
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.demo import load_photo
from open_supir.data.jpeg_rows import decode_rows
from open_supir.data.shards import ShardFolder, StoredSample, read_manifest, write_shards

PHOTOS = ("astronaut.png", "motorcycle_left.png", "retina.jpg", "ihc.png", "hubble_deep_field.jpg")
CROP, BATCH = 512, 8
PEER = ("webdataset + Pillow, 0 workers", "webdataset + Pillow, 2 workers")


def encoders(chroma: str) -> dict[str, Callable[[np.ndarray], bytes]]:
    """Return the encoders by source: as in a store, and without markers."""

    def save(image: np.ndarray, **options: int) -> bytes:
        data = io.BytesIO()
        subsampling = {"444": 0, "420": 2}[chroma]
        Image.fromarray(image).save(data, "JPEG", quality=95, subsampling=subsampling, **options)
        return data.getvalue()

    return {"main": lambda image: save(image, restart_marker_rows=1), "other": save}


def make_shards(root: Path, count: int, chroma: str) -> None:
    """Write `count` noisy 1024 x 1024 photographs at quality 95, as two sources."""
    for source, encode in encoders(chroma).items():
        write_shards(root / source, photographs(count, encode), prefix="bench", shard_size=8)


def photographs(count: int, encode: Callable[[np.ndarray], bytes]) -> Iterator[StoredSample]:
    """Yield `count` parts of photographs, enlarged, with the noise of a camera."""
    photos = [load_photo(name) for name in PHOTOS]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(rng.integers(400, min(photo.size) + 1))
        left = int(rng.integers(photo.width - side + 1))
        top = int(rng.integers(photo.height - side + 1))
        box = (left, top, left + side, top + side)
        image = np.asarray(photo.resize((1024, 1024), Image.Resampling.BICUBIC, box=box))
        noisy = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
        yield StoredSample(key=f"k{i:05d}", image=encode(noisy), caption="a photograph")


def in_memory(root: Path, *, rows: bool = False) -> Callable[[int], int]:
    """Baseline (a): bytes already in memory; decode (or only the `rows` needed), crop, stack."""
    folder = ShardFolder(root / "main", read_manifest(root / "main"))
    files = [folder.read(s, i).image for s, e in enumerate(folder.entries) for i in range(e.count)]
    rng = np.random.default_rng(0)

    def run(count: int) -> int:
        batch = []
        for number in range(count):
            data = files[number % len(files)]
            top, left = rng.integers(1024 - CROP + 1, size=2)
            if rows:
                image = decode_rows(data, int(top), int(top) + CROP)
            else:
                image = simplejpeg.decode_jpeg(data)[top : top + CROP]
            batch.append(image[:, left : left + CROP])
            if len(batch) == BATCH:
                torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
                batch = []
        return count

    return run


def in_two_processes(run: Callable[[int], int], count: int) -> int:
    """Baseline (a) in two concurrent processes."""
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


def ours(root: Path, count: int, workers: int, source: str = "main") -> int:
    """The training loader as it is, native crops."""
    module = RestorationDataModule(
        root,
        {source: SourceConfig(weight=1)},
        crop_size=CROP,
        global_batch=BATCH,
        num_workers=workers,
        crop=CropPolicy(native=1, area=0, whole=0),
        log_dir=root,
    )
    module.setup("fit")
    return take(module.train_dataloader(), count)


def take(loader: DataLoader, count: int) -> int:
    """Take about `count` images; the workers have ended when this returns."""
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


def worker_mib(root: Path) -> float:
    """Return a worker's private memory, not shared with its parent, after 60 batches."""
    module = RestorationDataModule(
        root,
        {"main": SourceConfig(weight=1)},
        crop_size=CROP,
        global_batch=BATCH,
        num_workers=2,
        crop=CropPolicy(native=1, area=0, whole=0),
        log_dir=root,
    )
    module.setup("fit")
    iterator = iter(module.train_dataloader())
    for _ in range(60):
        next(iterator)
    own = []
    for process in multiprocessing.active_children():
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                own.append(int(line.split()[1]) / 1024)
    del iterator
    return sum(own) / 2


def processor() -> str:
    """Return the name of the processor, if the system reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chroma", choices=["444", "420"], default="444")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_shards(root, options.images, options.chroma)
        size = sum(p.stat().st_size for p in (root / "main").glob("*.tar")) / options.images
        print(f"{options.images} images of {size / 1024:.0f} KiB, chroma {options.chroma}; "
              f"{os.cpu_count()} cores, {processor()}, torch {torch.__version__}, webdataset "
              f"{webdataset.__version__}, Pillow {PIL.__version__}, simplejpeg "
              f"{version('simplejpeg')}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
        baseline, rows = in_memory(root), in_memory(root, rows=True)
        runs: dict[str, Callable[[int], int]] = {
            "decode + crop": baseline,
            "decode of the rows + crop": rows,
            "loader, 0 workers": lambda n: ours(root, n, 0),
            "loader, 0 workers, other JPEG": lambda n: ours(root, n, 0, "other"),
            PEER[0]: lambda n: plain_webdataset(root, n, 0),
            "decode + crop, 2 processes": lambda n: in_two_processes(baseline, n),
            "decode of the rows + crop, 2 processes": lambda n: in_two_processes(rows, n),
            "loader, 2 workers": lambda n: ours(root, n, 2),
            "loader, 2 workers, other JPEG": lambda n: ours(root, n, 2, "other"),
            PEER[1]: lambda n: plain_webdataset(root, n, 2),
        }
        for run in runs.values():
            run(options.images)  # warm-up
        for _ in range(options.rounds):
            for name, run in runs.items():
                results.setdefault(name, []).append(cost(run, options.images))
        own = worker_mib(root)
        first = [first_batch_seconds(root, workers) for workers in (0, 2)]
    print("\n| pipeline | CPU ms/image | wall ms/image | decode + crop / this | peer / this |")
    print("|---|---|---|---|---|")
    for name, values in results.items():
        cpu, wall = (statistics.median(v[i] for v in values) for i in (0, 1))
        two = "2 " in name
        ratios = [
            statistics.median(r[0] / v[0] for r, v in zip(results[other], values, strict=True))
            for other in ("decode + crop, 2 processes" if two else "decode + crop", PEER[two])
        ]
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"\nFirst batch: {first[0]:.2f} s with 0 workers, {first[1]:.2f} s with 2.")
    print(f"Memory of a worker's own: {own:.0f} MiB.")


if __name__ == "__main__":
    main()
