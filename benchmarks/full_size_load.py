"""Load SDXL and SUPIR at full size from official files: time and peak memory of each step.

    python benchmarks/full_size_load.py FOLDER [small]

Writes random weights under the official names (6.9 GB of SDXL in fp16, 5.3 GB of SUPIR in fp32 as
a pickle), loads them in bf16 into networks built without memory, runs one joint forward at 64x64
latents, exports what SUPIR trains, loads that again and compares bit by bit. Each step is a process
of its own, so that its peak memory is its own. FOLDER needs 21 GB of disk; memory peaks near 12 GB.
`small` shrinks the networks, to try the script out.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from src.checkpoints import export_supir, load_parts, open_checkpoint
from src.checkpoints.files import TensorSpec
from src.checkpoints.keymaps import official_pieces, split_marker, to_official, to_piece
from src.checkpoints.safetensors_writer import write_safetensors
from src.networks import (
    AutoencoderKL,
    Conditioner,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from src.networks.conditioner import TextTowerConfig
from src.networks.connectors import ZeroSFTConnector

SDXL = ("unet", "vae", "clip_l", "clip_g")
SUPIR = ("control", "connector", "robust_encoder")
STEPS = ("write", "load", "forward", "export", "compare")


def build(small: bool) -> dict[str, nn.Module]:
    """Build every part on the meta device, as released."""
    width = 32 if small else 320
    levels = {
        "model_channels": width,
        "channel_mult": (1, 2, 4),
        "num_res_blocks": 2,
        "head_channels": 64,
    }
    clip_l = TextTowerConfig(width=768, layers=12, heads=12, quick_gelu=True)
    clip_g = TextTowerConfig(width=1280, layers=2 if small else 32, heads=20)
    trunk = levels | {
        "in_channels": 4,
        "transformer_depth": (0, 1, 2) if small else (0, 2, 10),
        "context_dim": 2048,
        "vector_dim": 2816,
    }
    with torch.device("meta"):
        vae = AutoencoderKL(
            ch=32 if small else 128,
            ch_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            z_channels=4,
            scale_factor=0.13025,
        )
        conditioner = Conditioner(clip_l=clip_l, clip_g=clip_g, size_channels=256)
        return {
            "unet": UNet(out_channels=4, **trunk),
            "vae": vae,
            "clip_l": conditioner.clip_l,
            "clip_g": conditioner.clip_g,
            "control": ControlAdaptor(**trunk),
            "connector": ZeroSFTConnector(cross_attention=True, **levels),
            "robust_encoder": RobustEncoder(vae),
        }


def write(folder: Path, small: bool) -> dict[str, float]:
    """Write random files in the official layout, tensor by tensor."""
    parts = build(small)
    _write_official(folder / "sdxl.safetensors", parts, SDXL, torch.float16)
    _write_official(folder / "supir.safetensors", parts, SUPIR, torch.float32)
    mapped = dict(open_checkpoint(folder / "supir.safetensors"))
    torch.save({"state_dict": mapped}, folder / "supir.ckpt")
    (folder / "supir.safetensors").unlink()
    return {
        "SDXL file, GB": (folder / "sdxl.safetensors").stat().st_size / 1e9,
        "SUPIR file, GB": (folder / "supir.ckpt").stat().st_size / 1e9,
    }


def load(folder: Path, small: bool) -> dict[str, float]:
    """Load both files in bf16; numbers: what the weights then weigh."""
    parts = _load(folder, small)
    held = sum(t.nbytes for module in parts.values() for t in module.state_dict().values())
    return {"weights, GB": held / 1e9}


def forward(folder: Path, small: bool) -> dict[str, float]:
    """Run the controlled UNet once at 64x64 latents, in bf16."""
    parts = _load(folder, small)
    network = ControlledUNet(parts["unet"], parts["control"], parts["connector"])  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float32)
    cond = Conditioning(draw(1, 77, 2048).bfloat16(), draw(1, 2816).bfloat16())
    x, z_lq = draw(1, 4, 64, 64).bfloat16(), draw(1, 4, 64, 64).bfloat16()
    start = time.perf_counter()
    with torch.inference_mode():
        out = network(x, torch.tensor([500]), cond, z_lq)
    assert out.isfinite().all()
    return {"forward alone, s": time.perf_counter() - start}


def export(folder: Path, small: bool) -> dict[str, float]:
    """Write what SUPIR trains, in bf16."""
    parts = _load(folder, small)
    path = folder / "exported.safetensors"
    export_supir(path, {part: parts[part] for part in SUPIR}, {"license": "random numbers"})
    return {"exported file, GB": path.stat().st_size / 1e9}


def compare(folder: Path, small: bool) -> dict[str, float]:
    """Load the exported file again; every tensor must equal the first load's, bit by bit."""
    first = _load(folder, small)
    again = build(small)
    load_parts(folder / "exported.safetensors", {part: again[part] for part in SUPIR})
    compared = 0
    for part in SUPIR:
        state = again[part].state_dict()
        for name, tensor in first[part].state_dict().items():
            if state[name].is_meta:
                continue  # quant_conv stays with the VAE's file
            assert torch.equal(tensor, state[name]), f"{part}.{name}"
            compared += 1
    return {"tensors equal": compared}


def main() -> None:
    """Run each step in its own process and print a table; or run the step that is named."""
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    small = "small" in words
    named = [word for word in words if word in STEPS]
    if named:
        print(json.dumps(_measure(named[0], folder, small)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = "small" if small else "full size"
    print(f"{size}; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, commit {_commit()}\n")
    print("| step | seconds | peak memory, GB | |\n|---|---|---|---|")
    for step in STEPS:
        command = [sys.executable, __file__, str(folder), step, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        numbers = json.loads(done.stdout.splitlines()[-1])
        rest = ", ".join(f"{key} {value:.2f}" for key, value in numbers["more"].items())
        print(f"| {step} | {numbers['seconds']:.1f} | {numbers['peak']:.2f} | {rest} |", flush=True)


def _measure(step: str, folder: Path, small: bool) -> dict[str, object]:
    steps: dict[str, Callable[[Path, bool], dict[str, float]]] = {
        "write": write,
        "load": load,
        "forward": forward,
        "export": export,
        "compare": compare,
    }
    start = time.perf_counter()
    more = steps[step](folder, small)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": time.perf_counter() - start, "peak": peak, "more": more}


def _load(folder: Path, small: bool) -> dict[str, nn.Module]:
    parts = build(small)
    load_parts(
        folder / "sdxl.safetensors",
        {part: parts[part] for part in (*SDXL, "robust_encoder")},
        expected_missing=["robust_encoder.encoder.*"],
        dtype=torch.bfloat16,
    )
    load_parts(folder / "supir.ckpt", {part: parts[part] for part in SUPIR}, dtype=torch.bfloat16)
    return parts


def _write_official(
    path: Path, parts: dict[str, nn.Module], wanted: tuple[str, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    entries = {}
    for part in wanted:
        for name, tensor in parts[part].state_dict().items():
            if f"{part}.{name}".startswith("robust_encoder.quant_conv."):
                continue
            for piece in official_pieces(f"{part}.{name}"):
                shape = tuple(to_piece(tensor, split_marker(piece)[1]).shape)
                read = partial(_random, shape, generator)
                entries[to_official(piece)] = (TensorSpec(shape, dtype), read)
    write_safetensors(path, entries, {})


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 0.02 * torch.randn(shape, generator=generator)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
