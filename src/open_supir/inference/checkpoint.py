"""Rebuild everything that restoration needs from a stage-2 checkpoint and its base weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.identify import DESCRIPTIONS, CheckpointInfo
from open_supir.checkpoints.load import Load, ignored_for, load_all
from open_supir.diffusion import Denoiser
from open_supir.networks import AutoencoderKL, Conditioner, ControlledUNet, RobustEncoder
from open_supir.networks.build import build_network, build_on_meta
from open_supir.networks.sdxl import sdxl_architecture

# What SUPIR's own command line does where nothing is said; the prompts are Restorer's defaults.
RELEASED_RESTORE: dict[str, Any] = {
    "settings": {
        "num_steps": 50,
        "cfg_scale": 4.0,
        "cfg_scale_start": 1.0,
        "s_churn": 5.0,
        "s_noise": 1.01,
        "churn_beyond_table": True,
    },
    "size_condition": [1024, 1024],
}


class Networks(NamedTuple):
    """What a Restorer is made of."""

    network: ControlledUNet
    denoiser: Denoiser
    conditioner: Conditioner
    vae: AutoencoderKL
    robust_encoder: RobustEncoder


def load_networks(
    path: str | Path,
    *,
    weights: Mapping[str, str | None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Networks:
    """Build the networks of a stage-2 checkpoint, or of a SUPIR file, and load all their weights.

    Everything is built without memory and loaded tensor by tensor in its final type, so that no
    more is needed than the weights take. A training checkpoint holds what was trained, how to build
    the rest, and which files the rest came from; its averaged weights are used where it has them.

    Args:
        path: A checkpoint of `python -m src.train`, stage supir, or a SUPIR file: exported by
            `python -m src.convert`, or released (SUPIR-v0Q, SUPIR-v0F).
        weights: Files to use in place of the recorded ones: sdxl, vae, robust_encoder. A SUPIR file
            records none, so it needs sdxl; its own robust encoder is used unless one is named.
            "clean" as robust_encoder is the ordinary encoder.
        dtype: Of UNet, adaptor, connector and text towers. Both encoders and the decoder are
            float32.

    Raises:
        FileNotFoundError: The checkpoint or a base file is missing; names it.
        ValueError: The checkpoint is of another kind, or names no base.
    """
    recipe = read_recipe(path)
    build: Mapping[str, Any] = recipe["architecture"]
    files = {**recipe["weights"], **{k: v for k, v in (weights or {}).items() if v is not None}}
    if files.get("sdxl") is None:
        raise ValueError(
            f"{path} does not say which SDXL file it belongs to; set weights.sdxl=FILE"
        )
    denoiser = Denoiser(**{k: v for k, v in build["denoiser"].items() if k != "_target_"})
    ignored = ignored_for(denoiser.prediction)

    vae: AutoencoderKL = build_on_meta(build["vae"])
    conditioner: Conditioner = build_on_meta(build["conditioner"])
    network = ControlledUNet(
        build_on_meta(build["unet"]),
        build_on_meta(build["control"]),
        build_network(build["connector"]),
    )
    vae_key = "vae" if files.get("vae") else "sdxl"
    robust_encoder = RobustEncoder(vae)
    base: dict[str, nn.Module] = {
        "unet": network.unet,
        "clip_l": conditioner.clip_l,
        "clip_g": conditioner.clip_g,
    }
    coders: dict[str, nn.Module] = {"vae": vae, "robust_encoder": robust_encoder}
    trained: dict[str, nn.Module] = {"control": network.control, "connector": network.connector}
    loads = [
        Load(path=files["sdxl"], parts=base, dtype=dtype, key="weights.sdxl", ignored=ignored),
        Load(
            path=files[vae_key],
            parts=coders,
            taken_from={"robust_encoder": "vae"},
            dtype=torch.float32,
            key=f"weights.{vae_key}",
            ignored=ignored,
        ),
        Load(path=path, parts=trained, dtype=dtype, key="checkpoint"),
    ]
    if files.get("robust_encoder") not in (None, "clean"):
        loads.append(
            Load(
                path=files["robust_encoder"],
                parts={"robust_encoder": robust_encoder},
                dtype=torch.float32,
                key="weights.robust_encoder",
            )
        )
    load_all(loads)
    return Networks(network, denoiser, conditioner, vae, robust_encoder)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return how to build, feed and sample with a stage-2 checkpoint; reads no weights.

    A file that does not say (a released SUPIR file) is taken for SDXL's size, with the depth and
    the connector that its names show, and is sampled as the released code does.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no stage-2 checkpoint.
    """
    info = inspect_checkpoint(path, key="checkpoint")
    recipe: Any = json.loads(info.metadata.get("recipe", "null"))
    if recipe is None and {"control", "connector"} <= set(info.parts):
        recipe = _released_recipe(info)
    if not isinstance(recipe, dict) or recipe.get("stage") != "supir":
        stage = f" of stage {recipe['stage']}" if isinstance(recipe, dict) else ""
        raise ValueError(
            f"{path}: not a stage-2 checkpoint, but {DESCRIPTIONS[info.kind]}{stage} with the "
            f"parts {', '.join(info.parts) or 'none'}; restoring needs one made by "
            "experiment=zerosft or another stage-2 experiment, or a SUPIR file"
        )
    own = {"robust_encoder": str(path)} if "robust_encoder" in info.parts else {}
    return {**recipe, "weights": {**recipe.get("weights", {}), **own}}


def _released_recipe(info: CheckpointInfo) -> dict[str, Any]:
    if "robust_encoder" not in info.parts:
        raise ValueError(
            f"{info.path}: holds adaptor and connector, but no robust encoder, which restoring "
            "needs; use the complete file"
        )
    architecture = sdxl_architecture(control=info.control, connector=info.connector)
    return {
        "stage": "supir",
        "architecture": {**architecture, "denoiser": {}},
        "weights": {"sdxl": str(info.path)} if info.kind == "supir-full" else {},
        "restore": RELEASED_RESTORE,
    }
