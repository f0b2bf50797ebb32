"""First command on a borrowed GPU: 30 minutes, everything that is open without one.

    python benchmarks/gpu_first_run.py [results=gpu_first_run.md] [parts=train_channels_last,waits]
    python benchmarks/gpu_first_run.py rehearse=true [scale=tiny] [memory=80]

Each part runs in a process of its own with a time limit; a part that fails or runs out of time is
reported, and the others go on. Lines are in the results file as soon as they are printed. Networks
have SDXL's size and random weights. Eager parts come first: nothing is compiled before the training
rows. `rehearse=true` runs all parts without a GPU (rehearsed.py): peaks are simulated, times mean
nothing.
"""

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import profile, supported_activities

from open_supir.base.files import write_text
from open_supir.diffusion import SamplerSettings
from open_supir.rehearsal.meter import calling_line

HERE = Path(__file__).parent
MINUTES = 30  # all parts together
REHEARSAL_LIMIT = 600  # seconds of a part
DEFAULTS = {"results": "gpu_first_run.md", "parts": "", "scale": "sdxl", "rehearse": "false",
            "memory": "80"}  # fmt: skip
KERNELS = 20  # of the profile
ERROR_LINES = 12


@dataclass(frozen=True)
class Size:
    """How large and how often a part measures."""

    scale: str
    batches: tuple[int, ...]  # crops of a training step
    side: int  # of the smallest image that is restored
    steps: tuple[int, int]  # of the sampler: with guidance, and of a distilled model
    repeats: int

    @classmethod
    def of(cls, scale: str, *, is_rehearsal: bool) -> "Size":
        """Return what to measure; a rehearsal repeats nothing."""
        side = {"sdxl": 1024, "tiny": 64}[scale]
        steps, repeats = ((2, 2), 1) if is_rehearsal else ((50, 8), 10)
        return cls(scale, (8, 16, 32), side, steps, repeats)


def machine(size: Size) -> None:
    """Print hardware and versions."""
    from bench_train_step import peak_flops

    card = torch.cuda.get_device_properties(0)
    rate = peak_flops(torch.device("cuda"))
    print(f"- {card.name}, {card.total_memory / 1e9:.1f} GB; bf16 matrix product "
          f"{rate / 1e12:.0f} TFLOP/s")  # fmt: skip
    print(f"- {platform.processor() or platform.machine()}, {os.cpu_count()} logical cores, "
          f"{platform.platform()}")  # fmt: skip
    print(f"- torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN "
          f"{torch.backends.cudnn.version()}, Python {platform.python_version()}")  # fmt: skip


@torch.no_grad()
def canvas(size: Size) -> None:
    """Print how far the canvas on the GPU is from the loop on the CPU, and its time."""
    from bench_degradation import crops, on_gpu, ranges

    from open_supir.degradation import DegradationPipeline

    side = size.side // 2
    hq, seeds = crops(8, side) * 2 - 1, torch.arange(8)
    config = ranges(resize_back="bicubic")
    loop = DegradationPipeline(config, path="loop")(hq, seeds)
    found = DegradationPipeline(config, path="canvas")(hq.cuda(), seeds).cpu()
    levels = (loop - found).abs() * 127.5
    psnr = 10 * torch.log10(4 / (loop - found).square().mean())
    print(f"Canvas against loop, 8 images of {side}, in 8-bit levels: mean {levels.mean():.4f}, "
          f"largest {levels.max():.0f}, equal {(levels < 0.5).float().mean():.2%}, PSNR "
          f"{psnr:.1f} dB")  # fmt: skip
    on_gpu(8, (side, 2 * side), (None,), size.repeats)


def train(size: Size, *overrides: str) -> None:
    """Print rows of the training step, by micro-batch."""
    from bench_train_step import (
        TRAIN_HEADER,
        compose_stage_2,
        counted,
        crop_of,
        our_step,
        peak_flops,
        train_rows,
    )

    device, cfg = torch.device("cuda"), compose_stage_2(size.scale, *overrides)
    peak = peak_flops(device)
    step = our_step(cfg, device, bfloat16=True, loaded=False)
    flops = counted(size.scale, "half", crop_of(cfg))
    print(TRAIN_HEADER, flush=True)
    train_rows(" ".join(overrides), step, list(size.batches), flops, peak, size.repeats)


def train_channels_last(size: Size) -> None:
    """Print the training step in channels_last."""
    train(size, "channels_last=true")


def train_contiguous(size: Size) -> None:
    """Print the training step in the other memory layout."""
    train(size, "channels_last=false")


def waits(size: Size) -> None:
    """Print where a training step waits for the device, and its kernels by time."""
    from bench_train_step import compose_stage_2, make_batch, our_step

    device, cfg = torch.device("cuda"), compose_stage_2(size.scale)
    step = our_step(cfg, device, bfloat16=True, loaded=False)
    batch = make_batch(size.batches[0], step.crop, device)
    for _ in range(2):  # the first ones make tables and the optimiser's state
        step(batch)
    found: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: found.update(
            [calling_line()] if "synchronizing CUDA" in str(message) else []
        )
        torch.cuda.set_sync_debug_mode("warn")
        step(batch)
        torch.cuda.set_sync_debug_mode("default")
    print(f"\nWaits of a step of {len(batch['hq'])} crops, without a trainer: {found.total()}")
    for place, count in found.most_common():
        print(f"- {count} x {place}")
    with profile(activities=supported_activities()) as profiler:
        step(batch)
        torch.cuda.synchronize()
    events = profiler.key_averages()
    total = sum(event.self_device_time_total for event in events) or 1
    print("\n| kernel | calls | ms | share |\n|---|---|---|---|")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:KERNELS]:
        spent = event.self_device_time_total
        name = event.key[:80].replace("|", "/")
        print(f"| {name} | {event.count} | {spent / 1e3:.2f} | {spent / total:.1%} |")


def restore(size: Size) -> None:
    """Print restorations of the smallest image, in both memory layouts."""
    from bench_restore import (
        RESTORE_HEADER,
        fast_settings,
        full_size,
        guided_settings,
        restore_row,
    )

    print(RESTORE_HEADER)
    runs = min(3, size.repeats)
    for layout in ("channels_last", "contiguous"):
        is_last = layout == "channels_last"
        restorer = full_size(size.scale, torch.device("cuda"), channels_last=is_last)
        guided, fast = guided_settings(size.steps[0]), fast_settings(size.steps[1])
        restore_row(f"{layout}, guidance", restorer, size.side, guided, runs=runs)
        restore_row(f"{layout}, distilled", restorer, size.side, fast, runs=runs)
        del restorer
        torch.cuda.empty_cache()


def restore_large(size: Size, name: str, settings: SamplerSettings, vae_tile: int | None) -> None:
    """Print restorations of large images: two steps each, without a run before."""
    from bench_restore import RESTORE_HEADER, full_size, restore_row

    restorer = full_size(size.scale, torch.device("cuda"), channels_last=True)
    print(RESTORE_HEADER)
    for side in (2 * size.side, 4 * size.side):
        try:
            restore_row(name, restorer, side, settings, runs=0, vae_tile=vae_tile)
        except torch.OutOfMemoryError:
            print(f"| {name} | {side} | | out of memory | | | |", flush=True)
        torch.cuda.empty_cache()


def restore_whole(size: Size) -> None:
    """Print large images in the mode that the memory ladder chooses."""
    restore_large(size, "as the ladder chooses", SamplerSettings(num_steps=2, cfg_scale=4.0), None)


def restore_tiled(size: Size) -> None:
    """Print large images with everything in tiles."""
    tiles = SamplerSettings(num_steps=2, cfg_scale=4.0, tile=size.side // 8)
    restore_large(size, "tiles", tiles, size.side)


@torch.no_grad()
def canvas_compiled(size: Size) -> None:
    """Print the canvas's time with both compilers."""
    from bench_degradation import on_gpu

    on_gpu(8, (size.side // 2,), ("cudagraphs", "inductor"), size.repeats)


def train_regional(size: Size) -> None:
    """Print the training step with compiled blocks."""
    train(size, "compile=regional")


# Seconds of each part, in their order: at most 30 minutes together.
PARTS: dict[Callable[[Size], None], int] = {
    machine: 60,
    canvas: 120,
    train_channels_last: 240,
    train_contiguous: 240,
    waits: 150,
    restore: 270,
    restore_whole: 150,
    restore_tiled: 180,
    canvas_compiled: 150,
    train_regional: 240,
}
NAMES = {part.__name__: part for part in PARTS}


class Results:
    """The results file, written whole after each change.

    Args:
        head: Its first lines.
    """

    def __init__(self, path: Path, head: str) -> None:
        self.path, self.text = path, head
        self.show("")

    def show(self, section: str) -> None:
        """Write the file with an unfinished section at its end."""
        write_text(self.path, self.text + section)

    def add(self, section: str) -> None:
        """Keep a section."""
        self.text += section
        self.show("")


def run_part(name: str, command: list[str], limit: float, results: Results) -> str:
    """Run a part in its own process and return how it ended: `ok`, or what went wrong."""
    description = (NAMES[name].__doc__ or "").partition("\n")[0]
    title, start = f"\n## {name}\n\n{description}\n\n", time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        with out.open("w") as stdout, errors.open("w") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, cwd=HERE.parent, start_new_session=True
            )
        try:
            shown = ""
            while process.poll() is None and time.monotonic() - start < limit:
                time.sleep(0.2)
                if (printed := out.read_text(errors="replace")) != shown:
                    shown = printed
                    results.show(title + shown)
            state = {0: "ok", None: f"stopped after its {limit:.0f} s"}.get(
                process.returncode, f"failed (exit status {process.returncode})"
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
        said = errors.read_text(errors="replace").splitlines()[-ERROR_LINES:]
        trace = "" if state == "ok" else "\n```\n" + "\n".join(said) + "\n```\n"
        ended = f"\n{state}, {time.monotonic() - start:.0f} s\n"
        results.add(title + out.read_text(errors="replace") + trace + ended)
    return state


def run_all(words: dict[str, str]) -> bool:
    """Run the parts one after another; returns whether all went well."""
    is_rehearsal = words["rehearse"] == "true"
    chosen = words["parts"].split(",") if words["parts"] else list(NAMES)
    options = [f"{key}={words[key]}" for key in ("scale", "rehearse")]
    script = [str(HERE / "gpu_first_run.py")]
    if is_rehearsal:
        script = [str(HERE / "rehearsed.py"), f"memory={words['memory']}", "gpu_first_run.py"]
    results = Results(Path(words["results"]), _head(is_rehearsal, words))
    end, states = time.monotonic() + 60 * MINUTES, []
    for name in chosen:
        limit = min(PARTS[NAMES[name]], end - time.monotonic())
        if is_rehearsal:
            limit = REHEARSAL_LIMIT
        if limit <= 0:
            results.add(f"\n## {name}\n\nnot started: {MINUTES} minutes are over\n")
            states.append("not started")
            continue
        command = [sys.executable, *script, f"part={name}", *options]
        states.append(run_part(name, command, limit, results))
        print(f"{name}: {states[-1]}", flush=True)
    print(f"results: {words['results']}")
    return set(states) == {"ok"}


def _head(is_rehearsal: bool, words: dict[str, str]) -> str:
    """Return the first lines of the results file."""
    lines = ["# First run on a GPU", "", f"`{shlex.join(['python', *sys.argv])}`, begun "
             f"{time.strftime('%Y-%m-%d %H:%M')}, scale={words['scale']}."]  # fmt: skip
    if is_rehearsal:
        lines += ["", "**No GPU: all rows are open.** This is a rehearsal on pretended CUDA "
                  f"tensors of a card of {words['memory']} GB: peaks are simulated, times, rates "
                  "and images mean nothing, nothing is compiled."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line names; returns the exit status."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in sys.argv[1:]}
    words = DEFAULTS | given
    part = words.pop("part", None)
    unknown = [f"option {key}" for key in given if key not in (*DEFAULTS, "part")]
    wanted = words["parts"].split(",") if words["parts"] else []
    unknown += [
        f"part {name}" for name in [*wanted, *([part] if part else [])] if name not in NAMES
    ]
    if unknown or words["scale"] not in ("sdxl", "tiny"):
        sys.exit(f"unknown: {', '.join(unknown) or words['scale']}; options are "
                 f"{', '.join(DEFAULTS)}; parts are {', '.join(NAMES)}")  # fmt: skip
    is_rehearsal = words["rehearse"] == "true"
    if part is not None:
        try:
            NAMES[part](Size.of(words["scale"], is_rehearsal=is_rehearsal))
        except Exception:
            traceback.print_exc()
            return 1
        return 0
    if not is_rehearsal and not torch.cuda.is_available():
        sys.exit("no GPU at hand; rehearse=true runs all parts without one")
    return 0 if run_all(words) else 1


if __name__ == "__main__":
    sys.exit(main())
