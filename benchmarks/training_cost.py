"""What training stage 2 at SDXL's size costs: FLOPs and memory, counted without a GPU.

The networks run forward and backward on meta tensors, which have shapes and no values; FLOPs and
the tensors kept for gradients are counted exactly, as if attention were fused. Hours are those
FLOPs at a share of a device's rate: estimates, to be replaced by measurements.

Run:  python benchmarks/training_cost.py             a minute
      ... depth=full crop=1024 steps=40000 batch=256
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from open_supir.base.registry import build  # noqa: E402
from open_supir.networks import ControlledUNet  # noqa: E402
from open_supir.networks.switches import checkpoint_activations  # noqa: E402
from open_supir.rehearsal.counted import flops_of, network_cost  # noqa: E402

MFU = 0.45  # share of the rate below that a good training step of this kind reaches
RATES = {"RTX 4090": 165.0, "RTX A6000": 155.0, "H200": 790.0}  # bf16 TFLOP/s
SETUPS = (  # name, device, devices, GB of each
    ("1 x 24 GB (RTX 4090)", "RTX 4090", 1, 24),
    ("8 x 48 GB (RTX A6000)", "RTX A6000", 8, 48),
    ("1 x H200", "H200", 1, 141),
    ("64 x RTX A6000", "RTX A6000", 64, 48),
)


def networks(depth: str) -> tuple[ControlledUNet, Any]:
    """Return the controlled UNet and the VAE on meta, in the dtype that they compute in."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["experiment=zerosft", "scale=sdxl", f"control={depth}"]
        cfg = compose("train", overrides=[*overrides, "runs_dir=/tmp", "run_dir=/tmp"])

    def part(name: str) -> Any:
        return build(OmegaConf.to_container(cfg[name], resolve=True))  # type: ignore[arg-type]

    with torch.device("meta"):
        network = ControlledUNet(part("unet"), part("control"), part("connector")).bfloat16()
        return network, part("vae").bfloat16().requires_grad_(False)


def main() -> None:
    """Print counts, then estimates for some machines."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    steps, batch = int(options.get("steps", "40000")), int(options.get("batch", "256"))
    depths = options.get("depth", "half,full").split(",")
    crops = [int(crop) for crop in options.get("crop", "512,1024").split(",")]
    print("| adaptor | crop | checkpointing | TFLOP a sample | with both encodes | kept, GB |")
    print("|---|---|---|---|---|---|")
    costs: dict[tuple[str, int, str], tuple[float, float]] = {}
    sizes: dict[str, tuple[float, float]] = {}
    for depth in depths:
        network, vae = networks(depth)
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in network.unet.parameters())
        frozen += sum(p.numel() for p in vae.parameters()) + 34_200_000 + 817_700_000  # E_dr, text
        sizes[depth] = (trained / 1e9, frozen / 1e9)
        for crop in crops:
            image = torch.empty(1, 3, crop, crop, device="meta", dtype=torch.bfloat16)
            encodes = 2 * flops_of(partial(vae.encode, image)) / 1e12
            for mode in ("none", "transformer", "full"):
                checkpoint_activations(network, mode)  # type: ignore[arg-type]
                forward, backward, kept_bytes = network_cost(network, crop // 8, 2048, 2816)
                flops, kept = (forward + backward) / 1e12, kept_bytes / 1e9
                costs[depth, crop, mode] = (flops + encodes, kept)
                row = f"{flops:.2f} | {flops + encodes:.2f} | {kept:.2f}"
                print(f"| {depth} | {crop} | {mode} | {row} |", flush=True)
    for depth in depths:
        trained, frozen = sizes[depth]
        print(
            f"\n{depth}: {trained:.3f} G trained x (4 weight + 4 gradient + 8 AdamW + 2 bf16 copy) "
            f"= {18 * trained:.1f} GB, 8-bit AdamW {12 * trained:.1f} GB; "
            f"{frozen:.2f} G frozen x 2 = {2 * frozen:.1f} GB; average (fp32) {4 * trained:.1f} GB"
        )
    crop, depth = crops[0], depths[0]
    print(f"\n{depth}, crops of {crop}, {steps} steps of {batch}, {MFU:.0%} of the bf16 rate:")
    print("| machine | days | GPU-hours |\n|---|---|---|")
    for name, device, count, _ in SETUPS:
        flops = costs[depth, crop, "none"][0] * steps * batch
        hours = flops / (RATES[device] * MFU) / 3600
        print(f"| {name} | {hours / count / 24:.1f} | {hours:.0f} |")


if __name__ == "__main__":
    main()
