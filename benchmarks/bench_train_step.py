"""Training step of stage 2 against a naive one, in time and memory.

    python benchmarks/bench_train_step.py [steps=20]                 tiny scale, on this machine
    python benchmarks/bench_train_step.py full [scale=sdxl] [batches=16,32,64] [variants=...]
                                               [repeats=10]          on a GPU; variants below
    python benchmarks/bench_train_step.py flops                      SDXL's size, counted

The naive step is the same mathematics as one would first write it: every tensor requires a
gradient and every network has a graph, weights in float32 under autocast, no channels_last, no
compilation, the plain optimiser. Both run in turn in one process on the same batch. Times are CPU
times of the process at tiny scale, device times on a GPU.
"""

import dataclasses
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from naive_step import naive_loss, train_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from open_supir.base.images import to_signed
from open_supir.data.samples import Batch
from open_supir.networks.conditioner import Conditioning
from open_supir.networks.switches import checkpoint_activations, compile_networks
from open_supir.training import SupirModule
from open_supir.training.base_weights import load_base_weights
from open_supir.training.flops import StepFlops, meta_conditioning, step_flops

ROOT = Path(__file__).parents[1]
BATCH = 8  # at tiny scale
PARTS = ("unet", "control", "connector", "vae", "conditioner", "denoiser")
TRAIN_HEADER = """| variant | batch | ms | images/s | MFU | VAE's share | peak GB |
|---|---|---|---|---|---|---|"""
# At full size, one after another.
VARIANTS: dict[str, tuple[str, ...]] = {
    "configured": (),
    "contiguous": ("channels_last=false",),
    "regional": ("compile=regional",),
    "compiled": ("compile=full",),
    "transformer": ("checkpointing=transformer",),
    "checkpointed": ("checkpointing=full",),
    "eight_bit": ("optim.kind=adamw_8bit",),
}


@dataclasses.dataclass
class Step:
    """One optimiser step that can be repeated.

    Args:
        module: Stage 2, on its device.
        loss: Of a batch.
        optimizer: Over the trained parts.
        autocast: Whether the loss is computed in bfloat16.
        crop: Side of its images in pixels.
    """

    module: SupirModule
    loss: Callable[[Batch], Tensor]
    optimizer: torch.optim.Optimizer
    autocast: bool
    crop: int

    def __call__(self, batch: Batch) -> Tensor:
        """Run it; returns the loss."""
        loss = self.forward(batch)
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.module.zero_grad(set_to_none=True)
        return loss.detach()

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, with its graph."""
        with torch.autocast(batch["hq"].device.type, torch.bfloat16, enabled=self.autocast):
            return self.loss(batch)


def compose_stage_2(scale: str, *overrides: str) -> DictConfig:
    """Return the configuration of stage 2 at a scale."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        base = ["experiment=zerosft", f"scale={scale}", "weights.robust_encoder=clean"]
        places = ["data.root=x", "data.heldout=x", "weights.sdxl=x"] if scale == "sdxl" else []
        return compose("train", overrides=[*base, *places, *overrides])


def crop_of(cfg: DictConfig) -> int:
    """Return the side of the training crops."""
    return int(cfg.data.crop_size)


def our_step(cfg: DictConfig, device: torch.device, *, bfloat16: bool, loaded: bool) -> Step:
    """Return the step as `src.train` runs it."""
    module = build(cfg, device, torch.bfloat16 if bfloat16 else torch.float32, loaded=loaded)
    if cfg.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint_activations(module, cfg.checkpointing)
    compile_networks(module, cfg.compile, dynamic=False)
    optimizer = module.configure_optimizers()["optimizer"]
    return Step(
        module,
        lambda batch: module.training_step(batch, 0)["loss"],
        optimizer,
        bfloat16,
        crop_of(cfg),
    )


def naive_step(cfg: DictConfig, device: torch.device, *, bfloat16: bool, loaded: bool) -> Step:
    """Return the naive step."""
    module = build(cfg, device, torch.float32, loaded=loaded)
    trained = [p for p in module.parameters() if p.requires_grad]
    train_everything(module)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=False, foreach=False)
    return Step(module, lambda batch: naive_loss(module, batch), optimizer, bfloat16, crop_of(cfg))


def build(
    cfg: DictConfig, device: torch.device, frozen: torch.dtype, *, loaded: bool
) -> SupirModule:
    """Build stage 2, trained parts in float32 and frozen ones in `frozen`: with the base weights
    that the configuration names, or with random ones.
    """
    with device:  # as fast as the device is
        module: SupirModule = instantiate(cfg.module, recipe={}, _convert_="all")
    module.log = lambda *values, **options: None  # type: ignore[method-assign]
    if loaded:
        cfg.weights.frozen_dtype = str(frozen).removeprefix("torch.")
        cfg.trainer.precision = "bf16-mixed"
        load_base_weights(module, cfg)
        return module.to(device)
    generator = torch.Generator(device).manual_seed(0)
    for owner in module.modules():
        for name, tensor in [*owner.named_parameters(recurse=False)]:
            dtype = torch.float32 if tensor.requires_grad else frozen
            value = torch.empty(tensor.shape, dtype=dtype, device=device)
            if tensor.ndim > 1:
                value.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            else:
                value.fill_(1.0 if name == "weight" else 0.0)
            setattr(owner, name, nn.Parameter(value, requires_grad=tensor.requires_grad))
    return module.to(device)


def make_batch(size: int, crop: int, device: torch.device) -> Batch:
    """Return one batch of coloured noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(size, 3, crop // 8, crop // 8, generator=generator)
    hq = nn.functional.interpolate(coarse, size=(crop, crop), mode="bicubic").clamp(0, 1)
    sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).repeat(size, 1)
    seeds = torch.arange(size)  # they stay on the CPU, where the loader has pinned them
    return {
        "hq": (hq * 255).to(torch.uint8).to(device),
        "caption": ["a photograph of a street"] * size,
        "sizes": sizes.to(device),
        "is_negative": torch.zeros(size, dtype=torch.bool, device=device),
        "source": ["positive"] * size,
        "key": [str(i) for i in range(size)],
        "seed": seeds.pin_memory() if device.type == "cuda" else seeds,
    }


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Count what the graph keeps for the backward pass, weights aside; the sum is the last item."""
    held: dict[int, int] = {}
    sums: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sums
    sums.append(sum(held.values()))


def state_bytes(step: Step, batch: Batch) -> int:
    """Return what weights, their gradients and the optimiser's state take."""
    step.forward(batch).backward()
    weights = list(step.module.parameters())
    gradients = [p.grad for p in weights if p.grad is not None]
    adam = [v for s in step.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    step.module.zero_grad(set_to_none=True)
    return sum(tensor.nbytes for tensor in [*weights, *gradients, *adam])


def tiny(steps: int) -> None:
    """Print the table of tiny scale."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    cfg = compose_stage_2("tiny")
    batch = make_batch(BATCH, crop_of(cfg), device)
    print(f"{environment()}, 1 thread\n")
    print(f"batch {BATCH} of {crop_of(cfg)}x{crop_of(cfg)}, {steps} steps")
    print("| precision | step | CPU ms, median | ratio | kept for backward MB | state MB |")
    print("|---|---|---|---|---|---|")
    for bfloat16 in (False, True):
        kinds = {"naive": naive_step, "ours": our_step}
        runs = {
            name: make(cfg, device, bfloat16=bfloat16, loaded=True) for name, make in kinds.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        losses = {name: float(run(batch)) for name, run in runs.items()}
        assert abs(losses["naive"] / losses["ours"] - 1) < (2e-2 if bfloat16 else 1e-4), losses
        for _ in range(steps):
            for name, run in runs.items():
                start = time.process_time()
                run(batch)
                times[name].append(time.process_time() - start)
        naive = statistics.median(times["naive"])
        for name, run in runs.items():
            with saved_bytes() as sums:
                run.forward(batch)
            median = statistics.median(times[name])
            words = "bf16 autocast" if bfloat16 else "float32"
            kept, state = sums[-1] / 1e6, state_bytes(run, batch) / 1e6
            print(
                f"| {words} | {name} | {1000 * median:.1f} | {naive / median:.2f} | {kept:.0f} | "
                f"{state:.0f} |"
            )


def full(scale: str, batches: list[int], variants: list[str], repeats: int = 10) -> None:
    """Print the tables of a GPU; at tiny scale they try the script out on a CPU."""
    if not torch.cuda.is_available() and scale != "tiny":
        sys.exit("full: no GPU at hand. scale=tiny tries the script out, flops counts without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = peak_flops(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{environment()}, {name}, scale={scale}")
    print(f"bf16 matrix product: {peak / 1e12:.3g} TFLOP/s")
    print("\n| forward pass in bf16 | ms |\n|---|---|")
    for mode in ("off", "regional", "full"):
        print(f"| UNet, batch 2, compile={mode} | {1000 * unet_time(scale, mode, device):.1f} |")
        release(None)
    for layout in (torch.contiguous_format, torch.channels_last):
        encode, decode = (1000 * seconds for seconds in vae_times(scale, layout, device))
        words = str(layout).removeprefix("torch.")
        print(f"| VAE, {words} | encode {encode:.1f}, decode {decode:.1f} |")
    flops = counted(scale, "half", crop_of(compose_stage_2(scale)))
    print(f"\n{TRAIN_HEADER}")
    for name in variants:
        cfg = compose_stage_2(scale, *VARIANTS[name])
        step = our_step(cfg, device, bfloat16=True, loaded=False)
        train_rows(f"{name} {' '.join(VARIANTS[name])}", step, batches, flops, peak, repeats)
    step = naive_step(compose_stage_2(scale), device, bfloat16=True, loaded=False)
    train_rows("naive", step, batches, flops, peak, repeats)


def train_rows(
    name: str, step: Step, batches: list[int], flops: StepFlops, peak: float, repeats: int
) -> None:
    """Print one row of `TRAIN_HEADER` per batch size, and free the step's memory."""
    for size in batches:
        print(f"| {name} | {size} | {_train_row(step, size, flops, peak, repeats)} |", flush=True)
    release(step)


def _train_row(step: Step, size: int, flops: StepFlops, peak: float, repeats: int) -> str:
    device = next(step.module.parameters()).device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        batch = make_batch(size, step.crop, device)
        seconds = device_time(lambda: step(batch), device, repeats=repeats)
        hq = to_signed(batch["hq"])

        def encodes() -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                step.module.vae.encode(hq)
                step.module.robust_encoder(hq)

        share = device_time(encodes, device, repeats=repeats) / seconds
    except torch.cuda.OutOfMemoryError:
        release(step)
        return "out of memory | | | |"
    mfu = size * (flops.trained + flops.frozen) / seconds / peak
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if on_gpu else "-"
    figures = f"{1000 * seconds:.0f} | {size / seconds:.1f} | {100 * mfu:.0f} %"
    return f"{figures} | {100 * share:.0f} % | {memory}"


def unet_time(scale: str, mode: Any, device: torch.device) -> float:
    """Return seconds of one UNet call with two images, 1024 pixels wide at SDXL's size."""
    cfg = compose_stage_2(scale)
    unet = build(cfg, device, torch.bfloat16, loaded=False).network.unet
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_networks(unet, mode)
    side = 128 if scale == "sdxl" else 16
    spec: Any = OmegaConf.to_container(cfg.unet, resolve=True)
    cond = meta_conditioning(spec, rows=2)
    cond = Conditioning(*(torch.randn(c.shape, device=device) for c in cond))
    x = torch.randn(2, spec["in_channels"], side, side, device=device)
    t = torch.tensor([500, 500], device=device)
    with torch.no_grad():
        return device_time(lambda: unet(x, t, cond), device)


def vae_times(scale: str, layout: torch.memory_format, device: torch.device) -> tuple[float, float]:
    """Return seconds of encoding and decoding one image, 1024 pixels wide at SDXL's size."""
    vae = build(compose_stage_2(scale), device, torch.bfloat16, loaded=False).vae
    vae.to(memory_format=layout)  # type: ignore[call-overload]
    side = 1024 if scale == "sdxl" else 64
    image = torch.rand(1, 3, side, side, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        z = vae.encode(image)
        encode = device_time(lambda: vae.encode(image), device)
        return encode, device_time(lambda: vae.decode(z), device)


def flops_table() -> None:
    """Print what a training step takes at SDXL's size, counted."""
    print("| adaptor | crop | networks TFLOP | encodes TFLOP | images/s at 45 % of 790 TFLOP/s |")
    print("|---|---|---|---|---|")
    for control in ("full", "half", "third"):
        for crop in (512, 1024):
            flops = counted("sdxl", control, crop)
            rate = 0.45 * 790e12 / (flops.trained + flops.frozen)
            figures = f"{flops.trained / 1e12:.2f} | {flops.frozen / 1e12:.2f} | {rate:.0f}"
            print(f"| {control} | {crop} | {figures} |")


def counted(scale: str, control: str, crop: int) -> StepFlops:
    """Count an image's training step."""
    cfg = compose_stage_2(scale, f"control={control}")
    parts: Any = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in PARTS}
    flops = step_flops(parts, stage="supir", crop=crop)
    assert flops is not None
    return flops


def peak_flops(device: torch.device) -> float:
    """Return the rate of a large bfloat16 matrix product, in operations per second."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / device_time(lambda: a @ b, device)


def device_time(call: Callable[[], Any], device: torch.device, *, repeats: int = 10) -> float:
    """Return seconds per call, after warming up; a GPU is synchronised only at both ends."""

    def run(times: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(min(3, repeats))
    return run(repeats) / repeats


def release(step: Step | None) -> None:
    """Free a step's gradients and optimiser state, and what was compiled."""
    if step is not None:
        step.module.zero_grad(set_to_none=True)
        step.optimizer.state.clear()
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def environment() -> str:
    """Return versions and processor."""
    processor = platform.processor() or platform.machine()
    return f"torch {torch.__version__}, Python {platform.python_version()}, {processor}"


def main() -> None:
    """Run the part that the command line names."""
    words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    if "full" in sys.argv[1:]:
        batches = [int(size) for size in words.get("batches", "16,32,64").split(",")]
        variants = words["variants"].split(",") if "variants" in words else list(VARIANTS)
        full(words.get("scale", "sdxl"), batches, variants, int(words.get("repeats", 10)))
    elif "flops" in sys.argv[1:]:
        flops_table()
    else:
        tiny(int(words.get("steps", 20)))


if __name__ == "__main__":
    main()
