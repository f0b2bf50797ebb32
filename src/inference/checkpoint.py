"""Rebuild everything that restoration needs from a training checkpoint and its base weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from src.checkpoints import load_parts
from src.diffusion import Denoiser
from src.networks import AutoencoderKL, Conditioner, ControlledUNet, RobustEncoder
from src.networks.build import build_network


class Networks(NamedTuple):
    """What a Restorer is made of."""

    network: ControlledUNet
    denoiser: Denoiser
    conditioner: Conditioner
    vae: AutoencoderKL
    robust_encoder: RobustEncoder


def load_networks(path: str | Path, *, weights: Mapping[str, str | None] | None = None) -> Networks:
    """Build the networks of a stage-2 checkpoint and load all their weights.

    The checkpoint holds what was trained, how to build the rest, and which files the rest came
    from. Its averaged weights are used where it has them.

    Args:
        path: A checkpoint of `python -m src.train`, stage supir.
        weights: Files to use in place of the recorded ones: sdxl, vae, robust_encoder.

    Raises:
        FileNotFoundError: The checkpoint or a base file is missing; names it.
        ValueError: The checkpoint is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train one with experiment=zerosft")
    recipe = read_recipe(path)
    build: Mapping[str, Any] = recipe["architecture"]
    files = {**recipe["weights"], **{k: v for k, v in (weights or {}).items() if v is not None}}
    denoiser = {k: v for k, v in build["denoiser"].items() if k != "_target_"}

    vae: AutoencoderKL = build_network(build["vae"])
    conditioner: Conditioner = build_network(build["conditioner"])
    network = ControlledUNet(
        build_network(build["unet"]),
        build_network(build["control"]),
        build_network(build["connector"]),
    )
    base: dict[str, nn.Module] = {
        "unet": network.unet,
        "clip_l": conditioner.clip_l,
        "clip_g": conditioner.clip_g,
    }
    load_parts(files["sdxl"], base, dtype=torch.float32, key="weights.sdxl")
    vae_key = "vae" if files.get("vae") else "sdxl"
    load_parts(files[vae_key], {"vae": vae}, dtype=torch.float32, key=f"weights.{vae_key}")
    robust_encoder = RobustEncoder(vae)
    if files.get("robust_encoder"):
        load_parts(
            files["robust_encoder"],
            {"robust_encoder": robust_encoder},
            dtype=torch.float32,
            key="weights.robust_encoder",
        )
    load_parts(path, {"control": network.control, "connector": network.connector})
    return Networks(network, Denoiser(**denoiser), conditioner, vae, robust_encoder)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the recipe of a stage-2 checkpoint, reading no weights into memory.

    Raises:
        ValueError: The file is not such a checkpoint.
    """
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    recipe = content.get("recipe") if isinstance(content, dict) else None
    if not isinstance(recipe, dict) or recipe.get("stage") != "supir":
        stage = recipe.get("stage") if isinstance(recipe, dict) else None
        raise ValueError(
            f"{path}: not a stage-2 checkpoint of this project"
            + (f", but one of stage {stage}" if stage else "")
            + "; restoring needs one made by experiment=zerosft or another stage-2 experiment"
        )
    return recipe
