"""Cost of the degradation pipeline against a plain reimplementation of Real-ESRGAN's structure.

    python benchmarks/bench_degradation.py [size=512] [batch=8] [batches=30] [usm=3] [canvas=3]
                                           [memory=0] [cuda=0]

The peer (degradation_peer.py) and the loop take turns in one process, on the same crops, and end at
the small LQ. Times are CPU times of the process, so that a busy machine matters less. `usm`
batches are timed with sharpening of the target, `canvas` batches on the static-shape path, which is
meant for GPUs. memory=1024 measures what the canvas allocates for 8 images of that side, cuda=1
times it on a GPU. 0 leaves a part out.
"""

import dataclasses
import platform
import random
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from degradation_peer import SMALLEST_SIDE, draw_batch, reference
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import open_supir.degradation.pipeline as pipeline_module
from open_supir.base.images import read_image
from open_supir.degradation import DegradationConfig, DegradationPipeline, ops
from open_supir.degradation.canvas_tables import make_layout, make_tables

ROOT = Path(__file__).parents[1]
PEER = "reference structure"
VIEWS = set(  # operators that launch nothing
    "view _unsafe_view slice select unsqueeze expand permute transpose t split unbind alias detach"
    " split_with_sizes lift_fresh squeeze as_strided empty new_empty".split()
)


def crops(count: int, size: int) -> Tensor:
    """Return (B, 3, S, S) in [0, 1] from scikit-image's photographs, enlarged where too small."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    images = []
    for i in range(count):
        name = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")[i % 4]
        image = read_image(folder / name)[None].float() / 255
        side = min(image.shape[-2:])
        image = F.interpolate(image[..., :side, :side], size=(size, size), mode="bicubic")
        images.append(image.clamp(0, 1).roll(37 * (i // 4), 3))
    return torch.cat(images)


def ranges(**changes: Any) -> DegradationConfig:
    """The standard ranges, ending at the small LQ as the peer does unless told otherwise."""
    built = instantiate(OmegaConf.load(ROOT / "conf/degradation/supir_q.yaml"))
    return dataclasses.replace(built.config, **{"resize_back": None, **changes})


def cpu_time(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(size: int, batch: int, batches: int, *, usm: bool) -> None:
    """Time the peer and the loop in turn; the first batch builds tables and is left out."""
    runs = {
        "loop": DegradationPipeline(ranges(sharpen=usm), path="loop"),
        "loop, LQ brought back to HQ size": DegradationPipeline(
            ranges(sharpen=usm, resize_back="bicubic"), path="loop"
        ),
    }
    image, rng = crops(batch, size), random.Random(0)
    hq = image * 2 - 1
    times: dict[str, list[float]] = {name: [] for name in (PEER, *runs)}
    for i in range(batches + 1):
        seeds = torch.arange(batch) + i * batch
        draws = draw_batch(runs["loop"].draw(seeds, size=(size, size)), rng)
        for name in times:
            if name == PEER:
                if size < SMALLEST_SIDE:
                    continue
                spent = cpu_time(lambda d=draws: reference(image, d, usm=usm))
            else:
                pipeline = runs[name]
                spent = cpu_time(lambda p=pipeline, s=seeds: (p(hq, s), p.target(hq)))
            if i > 0:
                times[name].append(spent / batch * 1e3)
    kind = "with USM of source and target" if usm else "without USM"
    print(f"\n## {size} x {size}, batch {batch}, {batches} batches, {kind}")
    print("| path | mean | median | reference / path: means | medians |\n|---|---|---|---|---|")
    peer = times[PEER]
    for name, values in times.items():
        if not values:
            continue
        mean, median = statistics.fmean(values), statistics.median(values)
        ratios = ("-", "-")
        if peer:
            ratios = (
                f"{statistics.fmean(peer) / mean:.1f}",
                f"{statistics.median(peer) / median:.1f}",
            )
        print(f"| {name} | {mean:.1f} | {median:.1f} | {ratios[0]} | {ratios[1]} |")


def parts(size: int, batch: int, batches: int) -> None:
    """Print where the loop's CPU time goes."""
    places = {
        "blur": (ops, "blur"),
        "JPEG": (pipeline_module, "_compress"),
        "resizes": (ops, "resize"),
        "Poisson noise": (ops, "poisson_noise"),
        "Gaussian noise": (ops, "gaussian_noise"),
        "to [0, 1]": (pipeline_module, "_to_unit"),
    }
    spent = dict.fromkeys(places, 0.0)

    def watched(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[name] += time.process_time() - start
            return result

        return call

    pipeline, hq = DegradationPipeline(ranges(), path="loop"), crops(batch, size) * 2 - 1
    pipeline(hq, torch.arange(batch))
    with ExitStack() as stack:
        for name, (module, function) in places.items():
            replaced = watched(name, getattr(module, function))
            stack.enter_context(patch.object(module, function, replaced))
        seeds = torch.arange(batches * batch).split(batch)
        total = sum(cpu_time(lambda s=s: pipeline(hq, s)) for s in seeds)
    shares = {name: value / total for name, value in spent.items()}
    shares["rest"] = 1 - sum(shares.values())
    print(f"\n## Where the loop's time goes, {size} x {size}, batch {batch}")
    print(" | ".join(f"{name} {share:.0%}" for name, share in shares.items()))


def canvas_cost(size: int, batch: int, batches: int) -> None:
    """Print the canvas's CPU time, and the host's work before a device can start."""
    pipeline = DegradationPipeline(ranges(), path="canvas")
    hq = crops(batch, size) * 2 - 1
    seeds = torch.arange(batch)
    pipeline(hq, seeds)
    spent = [cpu_time(lambda i=i: pipeline(hq, seeds + i)) for i in range(batches)]
    config, params = pipeline.config, pipeline.draw(seeds, size=(size, size))
    layout = make_layout(config, (size, size))
    drawn = [cpu_time(lambda: pipeline.draw(seeds, size=(size, size))) for _ in range(20)]
    planned = [cpu_time(lambda: make_tables(params, config, layout)) for _ in range(20)]
    print(f"\n## Canvas, {size} x {size}, batch {batch}")
    print(f"CPU time {statistics.median(spent) / batch * 1e3:.1f} ms an image.", end=" ")
    print(f"Host: draw {statistics.median(drawn) * 1e3:.1f} ms a batch,", end=" ")
    print(f"tables and maps {statistics.median(planned) * 1e3:.1f} ms.")


class Recorder(TorchDispatchMode):
    """Counts operators that are not views, and the bytes that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.now = self.peak = 0
        self.live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.launches += func.overloadpacket.__name__ not in VIEWS
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place and place not in self.live:
            self.live[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, place)

    def _free(self, place: int) -> None:
        self.now -= self.live.pop(place)


def launches(size: int, batch: int) -> None:
    """Print how many operators each path takes, without the host's own (draw, tables)."""
    hq, seeds = crops(batch, size) * 2 - 1, torch.arange(batch)
    print(f"\n## Operators that are not views, {size} x {size}, batch {batch}")
    for path in ("canvas", "loop"):
        pipeline = DegradationPipeline(ranges(resize_back="bicubic"), path=path)  # type: ignore[arg-type]
        params = pipeline.draw(seeds, size=(size, size))
        pipeline.apply(hq, params)
        with Recorder() as host:
            if path == "canvas":
                make_tables(params, pipeline.config, make_layout(pipeline.config, (size, size)))
            else:
                _ = params.tensors(), params.jpeg_tables("libjpeg")
        with Recorder() as both:
            pipeline.apply(hq, params)
        count = both.launches - host.launches
        print(f"{path}: {count} a batch, {count / batch:.0f} an image.")


def memory(size: int) -> None:
    """Print the most bytes that the canvas holds at once for 8 images, HQ left out."""
    pipeline = DegradationPipeline(ranges(resize_back="bicubic"), path="canvas")
    hq = crops(8, size) * 2 - 1
    with Recorder() as recorder:
        pipeline(hq, torch.arange(8))
    print(f"\n## Memory, canvas, 8 x {size} x {size}: {recorder.peak / 1e9:.2f} GB at most")


def on_gpu(
    batch: int,
    sizes: Sequence[int] = (512, 1024),
    backends: Sequence[str | None] = (None, "cudagraphs", "inductor"),
    repeats: int = 20,
) -> None:
    """Print milliseconds per image and peak memory on a GPU; synchronising is an error."""
    print(f"\n## {torch.cuda.get_device_name()}, batch {batch}, LQ brought back to HQ size")
    print("| side | how | ms an image | peak GB |\n|---|---|---|---|")
    for size in sizes:
        for how in backends:
            pipeline = DegradationPipeline(
                ranges(resize_back="bicubic"), path="canvas", compile=how
            )
            hq = (crops(batch, size) * 2 - 1).cuda()
            params = [
                pipeline.draw(torch.arange(batch) + i, size=(size, size))
                for i in range(repeats + 3)
            ]
            for one in params[:3]:  # tables, compilation
                pipeline.apply(hq, one)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            start.record()
            for one in params[3:]:
                pipeline.apply(hq, one)
            end.record()
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            spent = start.elapsed_time(end) / repeats / batch
            peak = (torch.cuda.max_memory_allocated() - before) / 1e9
            print(f"| {size} | {how or 'eager'} | {spent:.3f} | {peak:.2f} |", flush=True)


def main() -> None:
    options = {
        "size": 512, "batch": 8, "batches": 30, "usm": 3, "canvas": 3, "memory": 0, "cuda": 0
    }  # fmt: skip
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name not in options:
            raise ValueError(f"unknown option {name!r}; known: {', '.join(options)}")
        options[name] = int(value)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
    size, batch = options["size"], options["batch"]
    if options["batches"]:
        compare(size, batch, options["batches"], usm=False)
        parts(size, batch, options["batches"])
    if options["usm"]:
        compare(size, batch, options["usm"], usm=True)
    if options["canvas"]:
        canvas_cost(size, batch, options["canvas"])
        launches(size, batch)
    if options["memory"]:
        memory(options["memory"])
    if options["cuda"]:
        on_gpu(batch)


if __name__ == "__main__":
    main()
