"""A wrong file for a slot: one clear error before any weight is read, at either scale."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_supir.checkpoints.files import SafetensorsFile
from tests.checkpoints.test_identify import FILES
from tests.integration.conftest import Compose
from tests.integration.test_base_weights import loaded

STAGE_2 = ("experiment=zerosft_released", "weights.robust_encoder=clean")
WORDS = {
    "sd1": "Stable Diffusion 1.x",
    "lora": "LoRA",
    "refiner": "refiner",
    "truncated": "declares .* bytes, got",
    "supir": "SUPIR weights .*expected for weights.sdxl: unet, clip_l, clip_g",
    "vae": "a VAE alone with the parts vae; expected for weights.sdxl",
    "unknown": "a file of unknown kind with the parts none",
}


@pytest.fixture
def no_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: SafetensorsFile, key: str) -> Any:
        raise AssertionError(f"{file.path}: {key} was read")

    monkeypatch.setattr(SafetensorsFile, "__getitem__", refuse)


def wrong_file(kind: str, workplace: Path, folder: Path) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "truncated":
        path.write_bytes((workplace / "prior.safetensors").read_bytes()[:-1000])
    elif kind == "supir":
        path.write_bytes((workplace / "robust.safetensors").read_bytes())
    else:
        save_file({name: torch.zeros(shape) for name, shape in FILES[kind].items()}, path)
    return path


@pytest.mark.usefixtures("no_tensor_is_read")
@pytest.mark.parametrize("kind", WORDS)
def test_wrong_file_for_sdxl_is_named(
    composed_in: Compose, workplace: Path, tmp_path: Path, kind: str
) -> None:
    path = wrong_file(kind, workplace, tmp_path)
    with pytest.raises(ValueError, match=rf"{path.name}: .*{WORDS[kind]}"):
        loaded(composed_in("train", *STAGE_2, f"weights.sdxl={path}"))


@pytest.mark.usefixtures("no_tensor_is_read")
@pytest.mark.parametrize("slot", ["vae", "robust_encoder", "supir"])
def test_wrong_file_for_any_slot_fails_before_the_right_ones_are_read(
    composed_in: Compose, workplace: Path, tmp_path: Path, slot: str
) -> None:
    lora = wrong_file("lora", workplace, tmp_path)
    with pytest.raises(ValueError, match=rf"LoRA.*expected for weights\.{slot} "):
        loaded(composed_in("train", *STAGE_2, f"weights.{slot}={lora}"))
    swapped = workplace / ("robust.safetensors" if slot == "vae" else "prior.safetensors")
    with pytest.raises(ValueError, match=rf"nothing for .*expected for weights\.{slot}"):
        loaded(composed_in("train", *STAGE_2, f"weights.{slot}={swapped}"))


@pytest.mark.usefixtures("no_tensor_is_read")
@pytest.mark.parametrize("kind", ["sd1", "truncated", "tiny"])
def test_wrong_file_at_full_size_costs_no_memory_for_the_networks(
    composed_in: Compose, workplace: Path, tmp_path: Path, kind: str
) -> None:
    """The prior of the tiny scale among them: names differ, and the sizes say why."""
    tiny = kind == "tiny"
    path = workplace / "prior.safetensors" if tiny else wrong_file(kind, workplace, tmp_path)
    cfg = composed_in("train", *STAGE_2, "scale=sdxl", "trainer.precision=bf16-mixed",
                      f"weights.sdxl={path}", f"denoiser={'v' if tiny else 'eps'}")  # fmt: skip
    with pytest.raises((KeyError, ValueError), match="sizes differ" if tiny else WORDS[kind]):
        loaded(cfg)


MEASURE = """
import json, resource, sys
import torch
from torch import nn
from open_supir.checkpoints import load_parts, files
files.REMAP_BYTES = 16 << 20
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with torch.device("meta"):
    unet = nn.ModuleDict({f"l{n}": nn.Linear(2048, 2048) for n in range(int(sys.argv[2]))})
before = peak()
dtype = getattr(torch, sys.argv[3])
load_parts(sys.argv[1], {"unet": unet}, dtype=dtype)
total = sum(float(p.double().sum()) for p in unet.parameters())
print(json.dumps([peak() - before, sum(p.nbytes for p in unet.parameters()), total]))
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_loading_needs_the_final_memory_and_little_more(tmp_path: Path, suffix: str) -> None:
    """Peak resident memory of a process that loads a float32 file as bfloat16, against the weights.

    Half a gigabyte, so that the process's own noise is small beside it; 1.15 is the aim.
    """
    layers, width = 32, 2048
    prefix = "model.diffusion_model.l"
    tensors = {f"{prefix}{n}.weight": torch.ones(width, width) for n in range(layers)}
    tensors |= {f"{prefix}{n}.bias": torch.ones(width) for n in range(layers)}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    del tensors
    command = [sys.executable, "-c", MEASURE, str(path), str(layers), "bfloat16"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown, held, total = json.loads(done.stdout)
    assert held == 2 * layers * (width * width + width) and total == held / 2
    assert grown <= 1.15 * held, grown / held
    path.unlink()


def test_tiny_files_still_load(composed_in: Compose, workplace: Path) -> None:
    """The counterpart: the right file passes where the wrong ones stop."""
    module = loaded(composed_in("train", *STAGE_2))
    held = load_file(workplace / "prior.safetensors")["model.diffusion_model.out.2.bias"]
    assert torch.equal(module.network.unet.out[2].bias.data, held.float())
