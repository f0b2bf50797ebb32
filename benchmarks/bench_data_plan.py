"""Plan and look up 20M samples in 20,000 shards, as 64 ranks of 8 workers would.

Run: OMP_NUM_THREADS=1 python -m benchmarks.bench_data_plan [--shards 20000] [--steps 512]

The tars are sparse files with one valid header each; the indexes are real. Planning reads nothing
else. One rank and its eight workers run as processes; a node of eight ranks needs eight times their
memory. Workers look up their samples as in a job of 64 ranks, so caches hit as rarely.
"""

import argparse
import hashlib
import multiprocessing
import os
import tarfile
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from open_supir.data import SourceConfig
from open_supir.data.datamodule import prepare_worker
from open_supir.data.index import TarIndex, row_dtype
from open_supir.data.order import StepSampler
from open_supir.data.plan import DataPlan, make_plan
from open_supir.data.shards import ShardEntry, ShardFolder, index_path, save_index, write_manifest

RANKS, WORKERS, GLOBAL_BATCH, RANKS_PER_NODE = 64, 8, 256, 8
SAMPLES_PER_SHARD, IMAGE_BYTES = 1000, 500_000


def make_store(root: Path, shards: dict[str, int]) -> None:
    """Write manifests, indexes and hollow tars of all sources."""
    rows = np.zeros(SAMPLES_PER_SHARD, row_dtype(24))
    rows["key"] = [f"sample-{i:017d}".encode() for i in range(SAMPLES_PER_SHARD)]
    rows["image_offset"] = 512 + np.arange(SAMPLES_PER_SHARD) * (IMAGE_BYTES + 3072)
    rows["image_size"] = IMAGE_BYTES
    header = tarfile.TarInfo(f"{rows['key'][-1].decode()}.jpg")
    header.size = IMAGE_BYTES
    block = header.tobuf(tarfile.USTAR_FORMAT)
    size = int(rows["image_offset"][-1]) + IMAGE_BYTES + 4096
    statistics = {
        "image_bytes": {"min": 1, "mean": IMAGE_BYTES, "max": 900_000},
        "caption_words": {str(16 * i): 100 for i in range(10)},
        "scores": {"clipiqa": {"min": 0.1, "mean": 0.5}, "blur": {"min": 0.1, "mean": 0.5}},
    }
    for source, count in shards.items():
        folder, entries = root / source, []
        folder.mkdir(parents=True)
        first = folder / f"{source}-000000.tar"
        save_index(first, TarIndex(rows))
        for number in range(count):
            tar = folder / f"{source}-{number:06d}.tar"
            with open(tar, "wb") as file:
                file.seek(int(rows["image_offset"][-1]) - 512)
                file.write(block)
                file.truncate(size)
            if number:
                os.link(index_path(first), index_path(tar))
            digest = hashlib.sha256(tar.name.encode()).hexdigest()
            entries.append(
                ShardEntry(name=tar.name, count=SAMPLES_PER_SHARD, bytes=size, sha256=digest,
                           statistics=statistics)
            )  # fmt: skip
        write_manifest(folder, entries)


def plan(root: Path, shards: dict[str, int], *, check: bool) -> DataPlan:
    """Plan as the data module does."""
    sources = {name: SourceConfig(weight=count) for name, count in shards.items()}
    made = make_plan(root, sources, seed=1, global_batch=GLOBAL_BATCH, check=check)
    made.fingerprint()
    made.mixture.locate(0)
    return made


def look_up(made: DataPlan, worker: int, steps: int, answer: Connection) -> None:
    """Look up what one worker of rank 0 reads in `steps` steps; send back the costs."""
    prepare_worker(worker)
    sampler = iter(
        StepSampler(10**6 * GLOBAL_BATCH, global_batch=GLOBAL_BATCH,
                    micro_batch=GLOBAL_BATCH // RANKS, world=RANKS)
    )  # fmt: skip
    batches = [batch for i, batch in zip(range(steps), sampler, strict=False)
               if i % WORKERS == worker]  # fmt: skip
    positions = [position for batch in batches for position in batch]
    start = time.process_time()
    places = [made.mixture.locate(position) for position in positions]
    located = time.process_time()
    for place in places:
        folder = made.folders[place.source]
        assert isinstance(folder, ShardFolder)
        folder.key(int(made.shards[place.source][place.shard]), place.sample)
    found = time.process_time()
    per = 1e6 / len(positions)
    answer.send(((located - start) * per, (found - located) * per))
    answer.recv()
    answer.send(own_mib())


def own_mib() -> float:
    """Return the private memory of this process; in a forked one, what it wrote to."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell the memory of a process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=2048)
    options = parser.parse_args()
    shards = {"positive": options.shards, "face": 70, "negative": 100}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = multiprocessing.get_context("fork")
        maker = context.Process(target=make_store, args=(root, shards))  # its memory goes with it
        maker.start()
        maker.join()
        size = sum((root / s / "manifest.json").stat().st_size for s in shards)
        before = own_mib()
        start = time.perf_counter()
        made = plan(root, shards, check=True)
        first = time.perf_counter() - start
        planned = own_mib() - before
        start = time.perf_counter()
        plan(root, shards, check=False)
        other = time.perf_counter() - start
        pipes = [context.Pipe() for _ in range(WORKERS)]
        workers = [
            context.Process(target=look_up, args=(made, i, options.steps, pipes[i][1]))
            for i in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        costs = np.array([pipe.recv() for pipe, _ in pipes])
        for pipe, _ in pipes:
            pipe.send("measure")
        own = [pipe.recv() for pipe, _ in pipes]
        memory = planned + sum(own)
        for worker in workers:
            worker.join()
    total = sum(shards.values())
    print(f"{total * SAMPLES_PER_SHARD:,} samples in {total:,} shards, manifests {size >> 20} MiB")
    print(f"planned in {first:.2f} s with the checks of rank 0, {other:.2f} s on the others; "
          f"{planned:.0f} MiB of memory, a worker {max(own):.0f} MiB")  # fmt: skip
    print(f"look-up {costs[:, 0].mean():.0f} us a sample, {costs[:, 1].mean():.0f} us more for its "
          f"index; worst worker {costs[:, 0].max():.0f} + {costs[:, 1].max():.0f} us")  # fmt: skip
    print(f"rank and its {WORKERS} workers: {memory:.0f} MiB; a node of {RANKS_PER_NODE} ranks: "
          f"{memory * RANKS_PER_NODE / 1024:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
