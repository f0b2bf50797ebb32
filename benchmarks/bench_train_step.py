"""Time and memory of stage 2's training step, against one with everything in the graph.

On a CPU, tiny: our step and the naive one in turns. On a GPU, at SDXL's size with random weights:
the rate of a large product of matrices, the frozen networks alone, and the whole step (degradation
and both encodes on the device) by batch, compile, checkpointing and optimiser.

Run:  python benchmarks/bench_train_step.py              tiny, CPU
      python benchmarks/bench_train_step.py device=cuda  full size; about ten minutes on an H200
      ... batches=16,32,64 depth=half crop=512 steps=8
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.naive_step import naive_loss, train_everything  # noqa: E402
from src.networks.switches import checkpoint_activations, compile_networks  # noqa: E402
from src.training.optim import OptimSettings, build_optimizer  # noqa: E402

Step = Callable[[], Tensor]


def build(scale: str, depth: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a stage-2 module with random weights: frozen parts in `dtype`, trained in float32."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["experiment=zerosft", f"scale={scale}", f"control={depth}"]
        cfg = compose("train", overrides=[*overrides, "runs_dir=/tmp", "run_dir=/tmp"])
    OmegaConf.set_struct(cfg, False)
    with torch.device("meta"):
        module = instantiate(cfg.module, recipe={}, _convert_="all")
    frozen = [module.network.unet, module.vae, module.robust_encoder, module.conditioner]
    for part in frozen:
        part.to(dtype).requires_grad_(False)
    module.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(0.0)
        for layer in module.modules():
            if isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm):
                layer.weight.fill_(1.0)
        for tower in (module.conditioner.clip_l, module.conditioner.clip_g):
            tower.register_buffer("attn_mask", tower.build_causal_mask().to(device), False)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module.to(memory_format=torch.channels_last)


def batch_of(size: int, crop: int, device: torch.device) -> dict[str, Any]:
    """Return a random batch of crops."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, crop, crop), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[crop, crop, 0, 0, crop, crop]] * size, dtype=torch.float32)
    return {
        "hq": images.to(device),
        "caption": ["a photograph of a street in the rain"] * size,
        "sizes": sizes.to(device),
        "is_negative": torch.zeros(size, dtype=torch.bool, device=device),
        "source": ["positive"] * size,
        "key": [str(i) for i in range(size)],
        "seed": torch.arange(size),
    }


def step_of(module: Any, batch: Any, *, naive: bool, optim: str, autocast: bool) -> Step:
    """Return a whole training step: loss, gradients, update."""
    optimizer, _ = build_optimizer(module.named_parameters(), OptimSettings(lr=1e-5, kind=optim))  # type: ignore[arg-type]
    device = batch["hq"].device.type

    def step() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            loss = naive_loss(module, batch) if naive else module.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of a call: CPU time of the process, or time on the GPU."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.process_time() if device.type == "cpu" else time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        end = time.process_time() if device.type == "cpu" else time.perf_counter()
        times.append(end - start)
    return statistics.median(times)


def tiny(options: dict[str, str]) -> None:
    """Compare both steps on a CPU, in turns, in one process; memory is that of saved tensors."""
    device, crop = torch.device("cpu"), 64
    torch.set_num_threads(1)
    size, rounds = int(options.get("batches", "8")), int(options.get("steps", "15"))
    batch = batch_of(size, crop, device)
    steps, kept = {}, {}
    for name in ("ours", "naive"):
        module = build("tiny", options.get("depth", "half"), device, torch.float32)
        if name == "naive":
            train_everything(module)
        steps[name] = step_of(module, batch, naive=name == "naive", optim="adamw", autocast=False)
        kept[name] = bytes_kept(module, batch, naive=name == "naive")
        steps[name]()  # warm-up, and the optimiser's state
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds_of(step, device, 1))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"tiny, batch {size}, crops of {crop}, median CPU time of {rounds} steps in turns:")
    print("| step | CPU ms | tensors kept for gradients, MB |")
    print("|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {1e3 * value:.1f} | {kept[name] / 1e6:.1f} |")
    ratio = medians["naive"] / medians["ours"]
    print(f"naive / ours: {ratio:.2f} x time, {kept['naive'] / kept['ours']:.2f} x kept")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def bytes_kept(module: Any, batch: Any, *, naive: bool) -> int:
    """Return the bytes of tensors that a loss keeps for its gradients, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = naive_loss(module, batch) if naive else module.training_step(batch, 0)["loss"]
    total = sum(found.values())
    del loss
    return total


def full(options: dict[str, str]) -> None:
    """Print B7's table on a GPU."""
    device = torch.device("cuda")
    name = torch.cuda.get_device_name()
    crop, repeats = int(options.get("crop", "512")), int(options.get("steps", "8"))
    sizes = [int(size) for size in options.get("batches", "16,32,64").split(",")]
    depth = options.get("depth", "half")
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    rate = 2 * 8192**3 / seconds_of(lambda: a @ a, device, 20) / 1e12
    print(f"{name}; bf16 product of 8192 x 8192: {rate:.0f} TFLOP/s")
    frozen_alone(depth, crop, sizes[0], device, repeats)
    print("\n| step | batch | images/s | peak GB | MFU | |")
    print("|---|---|---|---|---|---|")
    variants: list[tuple[str, dict[str, Any]]] = [
        ("ours", {}),
        ("ours, compile=regional", {"compile": "regional"}),
        ("ours, compile=full", {"compile": "full"}),
        ("ours, checkpointing=transformer", {"checkpointing": "transformer"}),
        ("ours, contiguous", {"contiguous": True}),
        ("ours, 8-bit AdamW", {"optim": "adamw_8bit"}),
        ("naive: all in the graph, float32 weights, eager", {"naive": True}),
    ]
    for title, settings in variants:
        for size in sizes:
            print(row(title, settings, depth, crop, size, device, repeats, rate), flush=True)


def row(
    title: str,
    settings: dict[str, Any],
    depth: str,
    crop: int,
    size: int,
    device: torch.device,
    repeats: int,
    rate: float,
) -> str:
    """Return one line of the table; a step that does not fit says so."""
    naive = settings.get("naive", False)
    torch.cuda.reset_peak_memory_stats()
    try:
        module = build("sdxl", depth, device, torch.float32 if naive else torch.bfloat16)
        if naive:
            train_everything(module)
        if settings.get("contiguous"):
            module.to(memory_format=torch.contiguous_format)
        checkpoint_activations(module, settings.get("checkpointing", "none"))
        batch = batch_of(size, crop, device)
        optim = settings.get("optim", "adamw")
        step = step_of(module, batch, naive=naive, optim=optim, autocast=True)
        with FlopCounterMode(display=False) as counter:
            step()
        compile_networks(module, settings.get("compile", "off"))
        for _ in range(3):
            step()
        seconds = seconds_of(step, device, repeats)
        tflops = counter.get_total_flops() / seconds / 1e12
        mfu = f"{tflops / rate:.0%}"  # of the rate that products reach on this very device
        memory = torch.cuda.max_memory_allocated() / 1e9
        return f"| {title} | {size} | {size / seconds:.1f} | {memory:.1f} | {mfu} | |"
    except torch.OutOfMemoryError:
        return f"| {title} | {size} | | | | does not fit |"
    finally:
        module = step = batch = None
        gc.collect()
        torch.cuda.empty_cache()


def frozen_alone(depth: str, crop: int, size: int, device: torch.device, repeats: int) -> None:
    """Print the time of each frozen part, in bf16."""
    module, batch = build("sdxl", depth, device, torch.bfloat16), batch_of(size, crop, device)
    hq = batch["hq"] / 127.5 - 1
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        z = module.vae.encode(hq)
        cond = module.conditioner(batch["caption"], batch["sizes"])
        t = torch.full((size,), 500, device=device)
        parts: dict[str, Callable[[], Any]] = {
            "degradation": lambda: module.degradation(hq, batch["seed"]),
            "VAE encode": lambda: module.vae.encode(hq),
            "VAE decode": lambda: module.vae.decode(z),
            "text": lambda: module.conditioner(batch["caption"], batch["sizes"]),
            "UNet": lambda: module.network.unet(z, t, cond),
        }
        print(f"\n| part, forward, batch {size} | ms |\n|---|---|")
        for name, part in parts.items():
            part()
            print(f"| {name} | {1e3 * seconds_of(part, device, repeats):.1f} |")


def main() -> None:
    """Read key=value options; say where it ran."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    print(json.dumps({"torch": torch.__version__, "commit": commit, "options": options}))
    (full if options.get("device") == "cuda" else tiny)(options)


if __name__ == "__main__":
    main()
