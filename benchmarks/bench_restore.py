"""Restoring: what the sampler costs beyond the networks, and seconds per image by size and part.

    python benchmarks/bench_restore.py                       tiny scale, on the CPU
    python benchmarks/bench_restore.py full [scale=sdxl] [steps=50,8]
                                                             SDXL's size, random weights, on a GPU
    python benchmarks/bench_restore.py memory                SDXL's size: peak by mode, computed

The tiny networks are the demo's with an untrained adaptor. Overhead: a whole `restore_latent`
against the bare network calls on the same inputs, alternating, many times; CPU time of the process,
which a busy machine affects less. The ratio is taken per pair, since longer slowdowns affect both.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from open_supir.base.registry import build
from open_supir.checkpoints import load_parts
from open_supir.diffusion import Denoiser, SamplerSettings, restore_latent
from open_supir.diffusion.restoration import image_noise
from open_supir.inference import Restorer
from open_supir.inference.memory import UNET_VALUES, VAE_TILE, VAE_VALUES
from open_supir.inference.quantization import linear_share
from open_supir.networks import AutoencoderKL, ControlledUNet, RobustEncoder
from open_supir.networks.tiled_vae import HOST, KEPT

ROOT = Path(__file__).parents[1]
STEPS = 50
HALO = 104  # pixels that the decoder's convolutions see beyond a tile
SIDE = {"sdxl": 1024, "tiny": 64}  # of the images restored on a GPU
SIDES = (1024, 2048, 4096, 8192)
OVERHEADS = ((64, STEPS, 40), (128, STEPS, 20), (256, 20, 9))  # pixels, steps, pairs
RESTORE_HEADER = """| how | side | steps | seconds | peak GiB | seconds by stage | given up |
|---|---|---|---|---|---|---|"""
WHOLE = ((64, 3), (128, 3), (256, 3), (512, 1))  # pixels, runs


def networks(scale: str, *overrides: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Build the networks of a scale with random weights."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["experiment=zerosft", f"scale={scale}", *overrides])

    def part(name: str) -> Any:
        return build(OmegaConf.to_container(cfg[name], resolve=True))  # type: ignore[arg-type]

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # built at once in the dtype they run in
    try:
        parts = {n: part(n) for n in ("unet", "control", "connector", "vae", "conditioner")}
    finally:
        torch.set_default_dtype(default)
    return parts


def assemble(parts: dict[str, Any], **options: Any) -> Restorer:
    """Make a restorer of built networks."""
    network = ControlledUNet(parts["unet"], parts["control"], parts["connector"])
    vae = parts["vae"]
    return Restorer(network, Denoiser(), parts["conditioner"], vae, RobustEncoder(vae), **options)


def tiny_restorer() -> Restorer:
    """Return the demo's networks with an untrained adaptor, on the CPU."""
    parts = networks("tiny")
    base = {
        "unet": parts["unet"],
        "vae": parts["vae"],
        "clip_l": parts["conditioner"].clip_l,
        "clip_g": parts["conditioner"].clip_g,
    }
    prior = ROOT / "data/demo/supir_tiny.safetensors"
    load_parts(prior, base, dtype=torch.float32)
    load_parts(
        prior, {"control": parts["control"]}, taken_from={"control": "unet"},
        expected_missing=("control.input_hint_block.*",), dtype=torch.float32,
    )  # fmt: skip
    restorer = assemble(parts, size_condition=(128, 128))
    for part in (restorer.network, restorer.vae, restorer.robust_encoder):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return restorer


def cpu_time(function: Callable[[], Any]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def overhead(restorer: Restorer, side: int, steps: int, pairs: int) -> list[tuple[float, float]]:
    """Return CPU seconds of the sampling path, and of the network calls that it makes, by pair."""
    device = restorer.device
    latent = side // restorer.latent_factor
    channels = restorer.vae.post_quant_conv.in_channels
    z_lq = torch.randn(1, channels, latent, latent, device=device)
    _, cond, uncond = restorer.prompts("a photo", restorer.options, (side, side), device)
    settings = SamplerSettings(num_steps=steps, cfg_scale=4.0, tau=4.0)
    calls: list[tuple] = []

    class Recorder:
        prepare = restorer.network.prepare  # what is done once is no part of the calls

        def __call__(self, *inputs: Any) -> Tensor:
            calls.append(inputs)
            return restorer.network(*inputs)

    def sample(network: Any) -> Tensor:
        return restore_latent(
            network, Denoiser(), cond, uncond, z_lq,
            z_center=z_lq, settings=settings, randn=image_noise([0]),
        )  # fmt: skip

    def bare() -> None:
        with torch.no_grad():
            for inputs in calls:
                restorer.network(*inputs)

    sample(Recorder())
    return [(cpu_time(lambda: sample(restorer.network)), cpu_time(bare)) for _ in range(pairs)]


def tiny() -> None:
    """Print the tables of tiny scale."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    restorer = tiny_restorer()
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread")
    print("\nmedians, CPU seconds; overhead with the standard error of its median")
    print("| image | steps | pairs | sampling path | bare network calls | overhead |")
    print("|---" * 6 + "|")
    for side, steps, pairs in OVERHEADS:
        measured = overhead(restorer, side, steps, pairs)
        ours, theirs = (statistics.median(values) for values in zip(*measured, strict=True))
        ratios = [100 * (mine / bare - 1) for mine, bare in measured]
        low, _, high = statistics.quantiles(ratios, n=4)
        error = 0.93 * (high - low) / pairs**0.5  # of a median of normal values
        print(f"| {side} | {steps} | {pairs} | {ours:.3f} | {theirs:.3f} | "
              f"{statistics.median(ratios):+.1f} % +- {error:.1f} |", flush=True)  # fmt: skip
    print("\n20 steps, guidance, clean centre; wall seconds an image, and each part's share")
    parts = ("encode", "decode", "text", "sample", "finish")
    print("| image | seconds | " + " | ".join(parts) + " |\n|---|---|" + "---|" * len(parts))
    settings = SamplerSettings(num_steps=20, cfg_scale=4.0, tau=4.0)
    for side, count in WHOLE:
        image = torch.rand(3, side, side)
        runs = [restorer(image, sampler=settings).seconds for _ in range(count)]
        run = sorted(runs, key=lambda r: sum(r.values()))[count // 2]
        total = sum(run.values())
        shares = " | ".join(f"{100 * run.get(part, 0.0) / total:.0f} %" for part in parts)
        print(f"| {side} | {total:.2f} | {shares} |", flush=True)


def full_size(scale: str, device: torch.device, *, channels_last: bool) -> Restorer:
    """Return a restorer of random weights in bfloat16; at SDXL's size, of the released depth."""
    places = ["weights.sdxl=none", "data.root=none", "data.heldout=none"]
    released = [*places, "control=full", "connector=zerosft_released"]
    with device:
        parts = networks(scale, *(released if scale == "sdxl" else ()), dtype=torch.bfloat16)
    restorer = assemble(parts, device=device, dtype=torch.bfloat16, size_condition=(1024, 1024))
    if channels_last:
        for part in (restorer.network, restorer.vae, restorer.robust_encoder):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return restorer


def restore_row(
    name: str,
    restorer: Restorer,
    side: int,
    settings: SamplerSettings,
    *,
    runs: int,
    **options: Any,
) -> None:
    """Print a row of `RESTORE_HEADER`: the median of some runs on a GPU, after a first one.

    Args:
        runs: 0 measures the first one.
    """
    image, seconds = torch.rand(3, side, side), []
    for run in range(runs + 1):
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = restorer(image, sampler=settings, **options)
        torch.cuda.synchronize()
        if run or not runs:
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in result.seconds.items())
    given_up = ", ".join(rung.name for rung in result.given_up) or "-"
    figures = f"{statistics.median(seconds):.2f} | {peak:.1f} | {stages} | {given_up}"
    print(f"| {name} | {side} | {settings.num_steps} | {figures} |", flush=True)


def full(scale: str, guided: int, fast: int) -> None:
    """Print seconds of 1024x1024 at SDXL's size, random weights, bfloat16, on a GPU.

    Args:
        guided, fast: Steps with guidance, and of a distilled model.
    """
    if not torch.cuda.is_available():
        sys.exit("full needs a GPU")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, bfloat16, random weights")
    print(RESTORE_HEADER)
    side = SIDE[scale]
    for channels_last in (False, True):
        restorer = full_size(scale, torch.device("cuda"), channels_last=channels_last)
        name = "channels_last" if channels_last else "contiguous"
        restore_row(f"{name}, guidance", restorer, side, guided_settings(guided), runs=5)
        restore_row(f"{name}, distilled", restorer, side, fast_settings(fast), runs=5)
        del restorer
        torch.cuda.empty_cache()


def guided_settings(steps: int) -> SamplerSettings:
    """Return the paper's sampler."""
    return SamplerSettings(num_steps=steps, cfg_scale=4.0, cfg_scale_start=1.0)


def fast_settings(steps: int) -> SamplerSettings:
    """Return the sampler of a distilled model."""
    return SamplerSettings(num_steps=steps, sampler="dpmpp_2m", grid="karras", cfg_scale=1.0)


def tiled_values(vae: AutoencoderKL, side: int) -> float:
    """Return how many values a decode in tiles holds at once on a GPU: kept ones, two bands of
    them, and those of a tile of half the side.
    """
    levels: list[Any] = list(vae.decoder.up)
    most, source = VAE_VALUES * vae.decoder.conv_in.out_channels * (side // 8) ** 2, 0  # the middle
    tile, room = VAE_TILE // 2, KEPT * VAE_TILE**2
    for number, level in reversed(list(enumerate(levels))):
        width, factor = level.block[0].conv1.out_channels, 4**number
        whole = width * side**2 / factor
        if whole > room * (HOST if number else 1):  # together with all that follows
            ch = levels[0].block[0].conv1.out_channels
            return max(most, source + VAE_VALUES * ch * (tile + 2 * HALO) ** 2)
        source = whole if whole <= room else 0  # else on the host
        moving = 2 * width * tile * side + VAE_VALUES * width * tile**2
        most = max(most, source + moving / factor)
    return most


def memory() -> None:
    """Print peak GPU memory by mode and size: weights counted, activations by the estimate.

    The same estimate decides what fits (src/open_supir/inference/memory.py).
    """
    with torch.device("meta"):
        parts = networks("sdxl", "weights.sdxl=none", "data.root=none", "data.heldout=none",
                         "control=full", "connector=zerosft_released")  # fmt: skip
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in parts.items()}
    count["vae"] += sum(p.numel() for p in parts["vae"].encoder.parameters())  # the robust one
    linear = linear_share(parts["unet"]) * count["unet"]
    channels, ch = parts["unet"].model_channels, parts["vae"].decoder.conv_out.weight.shape[1]
    modes = {  # bytes a weight, bytes a linear weight of the UNet, offload, tiles
        "float32": (4, 4, False, False),
        "bfloat16": (2, 2, False, False),
        "bfloat16, tiles": (2, 2, False, True),
        "bfloat16, tiles, int8": (2, 1, False, True),
        "bfloat16, tiles, offload": (2, 2, True, True),
        "bfloat16, tiles, int8, offload": (2, 1, True, True),
    }
    print("| mode | " + " | ".join(map(str, SIDES)) + " |\n|---" + "|---" * len(SIDES) + "|")
    for name, (item, linear_item, offload, tiles) in modes.items():
        nets = (count["unet"] + count["control"] + count["connector"]) * item
        nets -= linear * (item - linear_item)
        text, vae = count["conditioner"] * item, count["vae"] * item
        row = []
        for side in SIDES:
            values = VAE_VALUES * ch * side**2
            if tiles and side > VAE_TILE:
                values = tiled_values(parts["vae"], side)
            at_vae = values * item
            latent = min(side, 1024) if tiles else side
            at_nets = UNET_VALUES * channels * item * 2 * (latent // 8) ** 2
            if offload:
                peak = max(text, vae + at_vae, nets + at_nets)
            else:
                peak = text + vae + nets + max(at_vae, at_nets)
            row.append(f"{peak / 2**30:.1f}")
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    if "full" in sys.argv[1:]:
        guided, fast = (int(count) for count in words.get("steps", "50,8").split(","))
        full(words.get("scale", "sdxl"), guided, fast)
    elif "memory" in sys.argv[1:]:
        memory()
    else:
        tiny()
