"""The tiny prior that ships with the code: its size, its format, its reconstructions."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.checkpoints import load_parts
from src.data.demo import photo_folder
from src.images import read_image, to_signed
from src.networks import AutoencoderKL, RobustEncoder
from src.networks.build import build_network
from src.training.robust_encoder_module import psnr
from tests.test_configs import CONF, ROOT, plain

DEMO = ROOT / "data/demo"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with initialize_config_dir(CONF, version_base="1.3"):
        vae = build_network(plain(compose("train", overrides=["experiment=zerosft"]), "vae"))
    load_parts(DEMO / "prior.safetensors", {"vae": vae}, dtype=torch.float32)
    return vae


def test_files_are_at_most_16_mb_together() -> None:
    assert sum(path.stat().st_size for path in DEMO.glob("*.safetensors")) <= 16e6


@torch.no_grad()
def test_held_out_photographs_are_reconstructed_at_28_db(vae: AutoencoderKL) -> None:
    """Whole photographs that training never saw, at their own size cut to a multiple of 4."""
    quality = []
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        photo = read_image(photo_folder() / name)[None]
        height, width = (side // 4 * 4 for side in photo.shape[-2:])
        hq = to_signed(photo[..., :height, :width])
        quality.append(psnr(vae.decode(vae.encode(hq)), hq).item())
    assert sum(quality) / 3 >= 28.0, quality


@torch.no_grad()
def test_latents_of_photographs_have_about_unit_variance(vae: AutoencoderKL) -> None:
    """The scale factor is the VAE's; a forgotten one would show here."""
    photo = read_image(photo_folder() / "coffee.png")[None]
    assert 0.6 < vae.encode(to_signed(photo)).std() < 1.6


def test_shipped_robust_encoder_loads_and_is_not_the_ordinary_one(vae: AutoencoderKL) -> None:
    robust_encoder = RobustEncoder(vae)
    load_parts(
        DEMO / "robust_encoder.safetensors",
        {"robust_encoder": robust_encoder},
        dtype=torch.float32,
    )
    own, other = robust_encoder.encoder.conv_in.weight, vae.encoder.conv_in.weight
    assert not torch.equal(own, other)
    assert Path(DEMO / "MODEL_CARD.md").is_file()
