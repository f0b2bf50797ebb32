"""The tiny model that ships with the code: its size, its reconstructions, what it restores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.utils.data import DataLoader

from open_supir.base.images import read_image, to_signed, to_unit
from open_supir.base.images.write import write_image
from open_supir.base.registry import build
from open_supir.checkpoints import load_parts
from open_supir.commands.restore import restore
from open_supir.data.demo import PHOTOS_FILE, photo_folder, write_held_out
from open_supir.data.pairs import FolderDataset
from open_supir.data.samples import collate
from open_supir.inference import Restorer
from open_supir.inference.model import find_checkpoint
from open_supir.networks import AutoencoderKL, RobustEncoder
from open_supir.training.robust_encoder_module import psnr
from tests.test_configs import CONF, ROOT, plain
from tests.waiting import PATIENCE

SHIPPED = ROOT / "data/demo/supir_tiny.safetensors"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with initialize_config_dir(CONF, version_base="1.3"):
        vae = build(plain(compose("train", overrides=["experiment=zerosft"]), "vae"))
    load_parts(SHIPPED, {"vae": vae}, dtype=torch.float32)
    return vae


def test_shipped_files_are_at_most_40_mb_together() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.parent.glob("*.safetensors")) <= 40e6


@torch.no_grad()
def test_held_out_photographs_are_reconstructed_at_34_db(vae: AutoencoderKL) -> None:
    """Whole photographs that training never saw, at their own size cut to a multiple of 4."""
    quality = []
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        photo = read_image(photo_folder() / name)[None]
        height, width = (side // 4 * 4 for side in photo.shape[-2:])
        hq = to_signed(photo[..., :height, :width])
        quality.append(psnr(vae.decode(vae.encode(hq)), hq).item())
    assert sum(quality) / 3 >= 34.0, quality


@torch.no_grad()
def test_latents_of_photographs_have_about_unit_variance(vae: AutoencoderKL) -> None:
    """The scale factor is the VAE's; a forgotten one would show here."""
    photo = read_image(photo_folder() / "coffee.png")[None]
    assert 0.6 < vae.encode(to_signed(photo)).std() < 1.6


@pytest.mark.slow  # 132 restorations, as in validation: fewer do not tell 1 dB from 0.8
@torch.no_grad()
def test_shipped_robust_encoder_gains_1_db_over_the_ordinary_one(
    vae: AutoencoderKL, tmp_path: Path
) -> None:
    """On held-out crops after the full second-order degradation that it was trained for."""
    robust_encoder = RobustEncoder(vae)
    load_parts(SHIPPED, {"robust_encoder": robust_encoder}, dtype=torch.float32)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=robust_encoder"])
    degrade = instantiate(cfg.degradation, _convert_="all")
    write_held_out(tmp_path / "heldout", json.loads(PHOTOS_FILE.read_text())["held_out"])
    photos = FolderDataset(tmp_path / "heldout", size=128, seed=0, count=132)
    gains = []
    for batch in DataLoader(photos, batch_size=12, collate_fn=collate):
        hq = to_signed(batch["hq"].contiguous())
        lq = degrade(hq, batch["seed"])
        gains.append(
            psnr(vae.decode(robust_encoder(lq)), hq) - psnr(vae.decode(vae.encode(lq)), hq)
        )
    assert torch.stack(gains).mean() >= 1.0


@torch.no_grad()
def test_shipped_checkpoint_restores_without_a_run_and_is_nearer_to_the_truth(
    tmp_path: Path,
) -> None:
    """Every fourth held-out crop, degraded as in training; the restored must not be worse."""
    restorer = Restorer.from_checkpoint(find_checkpoint(None, runs_dir=tmp_path))
    with initialize_config_dir(CONF, version_base="1.3"):
        degrade = instantiate(compose("train", overrides=["experiment=zerosft"]).degradation)
    write_held_out(tmp_path / "heldout", json.loads(PHOTOS_FILE.read_text())["held_out"])
    photos = FolderDataset(tmp_path / "heldout", size=128, seed=0, count=33)
    gains = []
    for index in range(0, 33, 4):
        batch = collate([photos[index]])
        hq = to_signed(batch["hq"].contiguous())
        lq = degrade(hq, batch["seed"])
        restored = restorer(to_unit(lq)[0], seed=0).restored
        gains.append(psnr(to_signed(restored[None]), hq) - psnr(lq, hq))
    assert torch.stack(gains).median() > 0.0


def test_fast_takes_the_shipped_one_step_version_where_there_is_no_run(tmp_path: Path) -> None:
    """In one step, whatever the preset says of steps; a named model is sampled in eight."""
    write_image(tmp_path / "in/a.png", torch.rand(3, 64, 64))
    found = {}
    asked = {"picked": ["sampler.control_scale=0.5"], "named": [f"checkpoint={SHIPPED}"]}
    for name, extra in asked.items():
        places = [f"input={tmp_path}/in", f"output={tmp_path}/{name}", f"runs_dir={tmp_path}/runs"]
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("restore", overrides=[*places, "device=cpu", "preset=fast", *extra])
        assert not restore(cfg)
        found[name] = json.loads((tmp_path / name / "a.png.json").read_text())
    assert found["picked"]["model"]["checkpoint"] == "one_step.safetensors"
    assert found["picked"]["notes"] == [
        "small: restored at 128 x 128, then reduced to 64 x 64 (min_size)"
    ]
    settings = found["picked"]["options"]["settings"]
    assert settings["num_steps"] == 1 and settings["control_scale"] == 0.5
    assert found["named"]["options"]["settings"]["num_steps"] == 8


def test_the_evaluation_command_measures_the_shipped_model_where_there_is_no_run(
    tmp_path: Path,
) -> None:
    for name in ("hq", "lq"):
        write_image(tmp_path / name / "a.png", torch.rand(3, 64, 64))
    asked = ["protocol=folder_pairs", "protocol.hq_folder=hq", "protocol.lq_folder=lq",
             f"data_root={tmp_path}", "metrics.names=[psnr]", "runs_dir=none"]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "src.evaluate", *asked, f"output={tmp_path}/eval"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| restored" in ended.stdout
