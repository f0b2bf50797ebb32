"""Load SDXL and SUPIR at full size from official files: time and peak memory of each step.

    python benchmarks/full_size_load.py FOLDER [small] [STEP]

Writes random weights under the official names (6.9 GB of SDXL in fp16, 5.3 GB of SUPIR in fp32 as
a pickle), loads them in bf16 into networks built without memory, restores with them once (text,
encoder, one joint forward at 64x64 latents, decoder), starts a training run from them, converts,
exports, loads the exports again and compares bit by bit. Each step runs in its own process, so
that peak memory is measured per step. FOLDER needs 28 GB of disk; memory peaks near 12 GB. `small`
shrinks the networks, to try the script out.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_supir.checkpoints import export_diffusers, export_supir, load_parts, open_checkpoint
from open_supir.checkpoints.files import TensorSpec
from open_supir.checkpoints.keymaps import official_pieces, split_marker, to_official, to_piece
from open_supir.checkpoints.safetensors_writer import write_safetensors
from open_supir.inference import checkpoint as restoration
from open_supir.networks import RobustEncoder
from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture

SDXL = ("unet", "vae", "clip_l", "clip_g")
SUPIR = ("control", "connector", "robust_encoder")
PARTS = (*SDXL, *SUPIR)
# What else the released files hold, which no part loads.
CLUTTER = {
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": (1, 77),
        "conditioner.embedders.1.model.logit_scale": (),
    },
    "supir": {"model.control_model.mask_LQ": (1, 4, 64, 64)},
}
CONFIG = Path(__file__).parents[1] / "conf"
SHRUNK = (
    "unet.model_channels=32", "unet.transformer_depth=[0,1,2]", "vae.ch=32",
    "scale.transformer_depth.half=[0,1,1]", "conditioner.clip_g.layers=2",
)  # fmt: skip


def architecture(small: bool) -> dict[str, dict[str, Any]]:
    """Return what builds every part: as released, or narrow and shallow."""
    specs = sdxl_architecture()
    if small:
        for part in ("unet", "control", "connector"):
            specs[part]["model_channels"] = 32
        for part in ("unet", "control"):
            specs[part]["transformer_depth"] = [0, 1, 2]
        specs["vae"]["ch"] = 32
        specs["conditioner"]["clip_g"]["layers"] = 2
    return specs


def build(small: bool) -> dict[str, nn.Module]:
    """Build every part on the meta device."""
    parts = {part: build_on_meta(spec) for part, spec in architecture(small).items()}
    conditioner = parts.pop("conditioner")
    parts |= {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}
    return {**parts, "robust_encoder": RobustEncoder(parts["vae"])}


def write(folder: Path, small: bool) -> dict[str, float]:
    """Write random files in the official layout, tensor by tensor."""
    parts, sizes = build(small), {}
    for name, wanted, dtype in (("sdxl", SDXL, torch.float16), ("supir", SUPIR, torch.float32)):
        entries = _entries(parts, wanted, dtype, CLUTTER[name])
        write_safetensors(folder / f"{name}.safetensors", entries, {})
        sizes[f"{name} tensors"] = len(entries)
    mapped = dict(open_checkpoint(folder / "supir.safetensors"))
    torch.save({"state_dict": mapped}, folder / "supir.ckpt")
    (folder / "supir.safetensors").unlink()
    for name in ("sdxl.safetensors", "supir.ckpt"):
        sizes[f"{name}, GB"] = (folder / name).stat().st_size / 1e9
    return sizes


def load(folder: Path, small: bool) -> dict[str, float]:
    """Load both files in bf16; compare peak memory with the size of the weights."""
    held = _nbytes(_load(folder, small))
    return {"weights, GB": held / 1e9, "peak / weights": _peak() / held}


def restore(folder: Path, small: bool) -> dict[str, float]:
    """Run every network once in bf16, as restoration does; the autoencoder is float32."""
    if small:  # such a file carries no configuration and would be taken for full size
        restoration.sdxl_architecture = lambda **options: architecture(True)
    start = time.perf_counter()
    networks = restoration.load_networks(
        folder / "supir.ckpt",
        weights={"sdxl": str(folder / "sdxl.safetensors")},
        dtype=torch.bfloat16,
    )
    seconds = {"load, s": time.perf_counter() - start, "load's peak, GB": _peak() / 1e9}
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1
    sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = call()
        seconds[f"{name}, s"] = time.perf_counter() - start
        return out

    with torch.inference_mode():
        cond = timed("text", lambda: networks.conditioner(["a photograph of a cat"], sizes))
        z_lq = timed("encode 512x512", lambda: networks.robust_encoder(image))
        x = torch.randn(z_lq.shape, generator=generator)
        t = torch.tensor([500])
        out = timed("joint forward", lambda: networks.network(x, t, cond, z_lq))
        image = timed("decode", lambda: networks.vae.decode(out))
    assert all(tensor.isfinite().all() for tensor in (*cond, z_lq, out, image))
    return seconds | {"standard deviation out": out.std().item()}


def train(folder: Path, small: bool) -> dict[str, float]:
    """Build stage 2 from its configuration and load its base: half depth, frozen parts in bf16."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from open_supir.training.base_weights import load_base_weights

    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        files = [
            f"weights.sdxl={folder.resolve()}/sdxl.safetensors",
            f"weights.robust_encoder={folder.resolve()}/supir.ckpt",
        ]
        unused = ["data.root=x", "data.heldout=x", *(SHRUNK if small else ())]
        cfg = compose("train", overrides=["experiment=zerosft", "scale=sdxl", *files, *unused])
    module = instantiate(cfg.module, recipe={}, _convert_="all")
    load_base_weights(module, cfg)
    assert not any(tensor.is_meta for tensor in module.parameters())
    trained = [p for p in module.parameters() if p.requires_grad]
    held = sum(p.nbytes for p in module.parameters())
    return {
        "weights, GB": held / 1e9,
        "trained, M": sum(p.numel() for p in trained) / 1e6,
        "peak / weights": _peak() / held,
    }


def export(folder: Path, small: bool) -> dict[str, float]:
    """Write what SUPIR trains as one file, and everything as a diffusers folder, in bf16."""
    parts = _load(folder, small)
    words = {"license": "random numbers"}
    supir, diffusers = folder / "exported.safetensors", folder / "diffusers"
    export_supir(supir, {part: parts[part] for part in SUPIR}, words)
    export_diffusers(diffusers, parts, words)
    size = sum(file.stat().st_size for file in diffusers.rglob("*.safetensors"))
    return {"SUPIR file, GB": supir.stat().st_size / 1e9, "diffusers folder, GB": size / 1e9}


def convert(folder: Path, small: bool) -> dict[str, float]:
    """Turn the fp32 pickle into a half-precision safetensors file that names its base's SHA-256."""
    from omegaconf import OmegaConf

    from open_supir.checkpoints.convert import convert as run

    settings: Any = OmegaConf.to_container(OmegaConf.load(CONFIG / "convert.yaml"))
    files = {"input": "supir.ckpt", "output": "converted.safetensors", "base": "sdxl.safetensors"}
    paths = {key: str(folder / name) for key, name in files.items()}
    path = run({**settings, **paths, "dtype": "float16", "overwrite": True})
    return {"file, GB": path.stat().st_size / 1e9}


def compare(folder: Path, small: bool) -> dict[str, float]:
    """Load the exports again, a part at a time; every tensor must equal the first load's, bit by
    bit.
    """
    compared = 0
    for part in PARTS:
        first = _load(folder, small, (part,))[part].state_dict()
        for path in (folder / "exported.safetensors", folder / "diffusers"):
            if part in SDXL and path.suffix:
                continue
            again = build(small)[part]
            load_parts(path, {part: again})
            for name, tensor in again.state_dict().items():
                if tensor.is_meta:
                    assert name.startswith("quant_conv.")  # stays with the VAE's file
                    continue
                assert torch.equal(tensor, first[name]), f"{path}: {part}.{name}"
                compared += 1
    return {"tensors equal": compared}


STEPS = {step.__name__: step for step in (write, load, restore, train, convert, export, compare)}


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
    print(f"{size}; {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, ")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, commit {_commit()}\n")
    print("| step | wall s | CPU s | peak memory, GB | |\n|---|---|---|---|---|")
    for step in STEPS:
        command = [sys.executable, __file__, str(folder), step, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"step {step} failed")
        numbers = json.loads(done.stdout.splitlines()[-1])
        rest = ", ".join(f"{key} {value:.4g}" for key, value in numbers["more"].items())
        figures = [f"{numbers[key]:.1f}" for key in ("wall", "cpu")] + [f"{numbers['peak']:.2f}"]
        print(f"| {step} | {' | '.join(figures)} | {rest} |", flush=True)


def _measure(step: str, folder: Path, small: bool) -> dict[str, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    more = STEPS[step](folder, small)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": _peak() / 1e9,
        "more": more,
    }


def _load(folder: Path, small: bool, wanted: tuple[str, ...] = PARTS) -> dict[str, nn.Module]:
    parts = {part: module for part, module in build(small).items() if part in wanted}
    base = {part: parts[part] for part in (*SDXL, "robust_encoder") if part in parts}
    trained = {part: parts[part] for part in SUPIR if part in parts}
    if base:
        copied = {"robust_encoder": "vae"}
        sdxl = folder / "sdxl.safetensors"
        load_parts(sdxl, base, taken_from=copied, dtype=torch.bfloat16)
    if trained:
        load_parts(folder / "supir.ckpt", trained, dtype=torch.bfloat16)
    return parts


def _entries(
    parts: Mapping[str, nn.Module],
    wanted: tuple[str, ...],
    dtype: torch.dtype,
    clutter: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[TensorSpec, Callable[[], Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    entries: dict[str, tuple[TensorSpec, Callable[[], Tensor]]] = {}
    for part in wanted:
        for name, tensor in parts[part].state_dict().items():
            if f"{part}.{name}".startswith("robust_encoder.quant_conv."):
                continue
            for piece in official_pieces(f"{part}.{name}"):
                shape = tuple(to_piece(tensor, split_marker(piece)[1]).shape)
                read = partial(_random, name, shape, generator)
                entries[to_official(piece)] = (TensorSpec(shape, dtype), read)
    for name, shape in clutter.items():
        entries[name] = (TensorSpec(shape, dtype), partial(torch.zeros, shape))
    return entries


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw values that keep activations near one, so that forward passes are meaningful."""
    noise = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return 0.02 * noise + (1.0 if name.endswith("weight") else 0.0)
    return 0.02 * noise if "embedding" in name else noise / noise[0].numel() ** 0.5


def _nbytes(parts: Mapping[str, nn.Module]) -> int:
    return sum(t.nbytes for module in parts.values() for t in module.state_dict().values())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor() -> str:
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0].partition(": ")[2] if names else platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
