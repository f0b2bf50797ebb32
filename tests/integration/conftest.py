"""A miniature of the whole road: a few shards, a random prior, run folders in a temporary place."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from open_supir.base.registry import build
from open_supir.checkpoints import export_sdxl, export_supir
from open_supir.data.demo import write_demo_shards
from open_supir.networks import RobustEncoder
from open_supir.training.trained_parts import CHECKPOINT_FORMAT
from tests.conftest import randomise
from tests.test_configs import CONF, plain

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with demo shards and a random prior in the official file layout."""
    root = tmp_path_factory.mktemp("road")
    write_demo_shards(root / "shards", photos=0.03, dead_leaves=8, negatives=6, shard_size=8)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=zerosft"])
    torch.manual_seed(0)
    vae = randomise(build(plain(cfg, "vae")))
    conditioner = build(plain(cfg, "conditioner"))
    parts = {
        "unet": randomise(build(plain(cfg, "unet"))),
        "vae": vae,
        "clip_l": conditioner.clip_l,
        "clip_g": conditioner.clip_g,
    }
    export_sdxl(root / "prior.safetensors", parts, {"prediction": "v"}, dtype=torch.float16)
    export_supir(root / "robust.safetensors", {"robust_encoder": RobustEncoder(vae)}, {})
    return root


@pytest.fixture
def composed_in(workplace: Path, tmp_path: Path) -> Compose:
    """Return a function that composes a command for the workplace; runs go to tmp_path."""

    def composed(name: str, *overrides: str, run: str = "run") -> DictConfig:
        places = [f"runs_dir={tmp_path}"]
        if name == "train":
            places += [
                f"run_dir={tmp_path / run}",
                f"data.root={workplace / 'shards'}",
                "data.num_workers=0",
                "data.global_batch=4",
                "data.val_size=2",
                "data.val_batch=2",
                f"weights.sdxl={workplace / 'prior.safetensors'}",
                f"weights.shipped={workplace / 'robust.safetensors'}",
                "trainer.accelerator=cpu",
                "max_steps=4",
                "val_every=4",
                "trainer.log_every_n_steps=1",
                "sampler.num_steps=2",
            ]
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose(name, overrides=[*places, *overrides])

    return composed


@pytest.fixture(scope="session")
def stage_2(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a stage-2 checkpoint over the workplace's prior, as training makes it, untrained.

    Its recipe asks for two sampling steps.
    """
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=zerosft", "sampler.num_steps=2"])
    torch.manual_seed(1)
    parts = {name: randomise(build(plain(cfg, name))) for name in ("control", "connector")}
    state = {
        f"network.{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    recipe = {
        "stage": "supir",
        "architecture": {
            part: plain(cfg, part)
            for part in ("unet", "control", "connector", "vae", "conditioner", "denoiser")
        },
        "sampler": plain(cfg, "sampler"),
        "options": plain(cfg, "options"),
        "weights": {
            "sdxl": str(workplace / "prior.safetensors"),
            "robust_encoder": str(workplace / "robust.safetensors"),
            "vae": None,
        },
    }
    path = tmp_path_factory.mktemp("stage_2") / "last.ckpt"
    torch.save({"format": CHECKPOINT_FORMAT, "state_dict": state, "recipe": recipe}, path)
    return path
