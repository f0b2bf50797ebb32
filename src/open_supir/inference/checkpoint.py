"""Build and load everything needed for restoration from a stage-2 checkpoint and base weights."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from open_supir.base.registry import build
from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.adapters import merge_adapters
from open_supir.checkpoints.hub_folder import base_of
from open_supir.checkpoints.identify import DESCRIPTIONS
from open_supir.checkpoints.load import WORDS, Load, LoadReport, ignored_for, load_all
from open_supir.checkpoints.loras import lora_files
from open_supir.diffusion import Denoiser
from open_supir.networks import AutoencoderKL, Conditioner, ControlledUNet, RobustEncoder
from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture

log = logging.getLogger(__name__)

SAMPLER = "open_supir.diffusion.SamplerSettings"
# The defaults of SUPIR's own command line; the prompts are those of RestoreOptions.
RELEASED: dict[str, dict[str, Any]] = {
    "sampler": {
        "num_steps": 50,
        "cfg_scale": 4.0,
        "cfg_scale_start": 1.0,
        "s_churn": 5.0,
        "s_noise": 1.01,
        "churn_beyond_table": True,
    },
    "options": {"size_condition": [1024, 1024], "min_size": "native"},
}


class Networks(NamedTuple):
    """The networks of a Restorer."""

    network: ControlledUNet
    denoiser: Denoiser
    conditioner: Conditioner
    vae: AutoencoderKL
    robust_encoder: RobustEncoder


def load_networks(
    path: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    ignored_keys: Iterable[str] = (),
) -> Networks:
    """Build the networks of a stage-2 checkpoint or a SUPIR file, and load all their weights.

    Networks are built on the meta device and loaded tensor by tensor in their final dtype, so peak
    memory is the size of the weights. A training checkpoint holds the trained parts, how to build
    the rest, and the files that the rest came from; its averaged weights are used if present.

    Args:
        path: A checkpoint of stage supir, or a SUPIR file: exported by `convert`, or released
            (SUPIR-v0Q, SUPIR-v0F).
        recipe: The result of `read_recipe`, if the caller already has it.
        weights: Files that replace the recorded ones: sdxl, vae, robust_encoder. A SUPIR file
            records none, so it needs sdxl; its own robust encoder is used unless one is given, and
            one must be given if it has none. "clean" as robust_encoder is the ordinary encoder.
            loras, see `lora_files`, are merged into the SDXL file.
        dtype: Dtype of UNet, adaptor, connector and text towers. Both encoders and the decoder are
            float32.
        ignored_keys: Keys that the files may have in addition; see `ignored` of `load_parts`.

    Raises:
        FileNotFoundError: The checkpoint or a base file is missing; the message names it.
        ValueError: The file is not a stage-2 checkpoint, no SDXL file or robust encoder is given
            for it, or a file that it names has changed.
    """
    recipe = read_recipe(path) if recipe is None else recipe
    files = {**recipe["weights"], **{k: v for k, v in (weights or {}).items() if v is not None}}
    if files.get("sdxl") is None:
        raise ValueError(f"{path} does not name its SDXL file; set weights.sdxl=FILE")
    if "robust_encoder" not in files:
        raise ValueError(
            f"{path} holds no robust encoder and names none; set weights.robust_encoder=FILE: a "
            "stage-1 checkpoint or a complete SUPIR file (or clean: the ordinary encoder)"
        )
    networks = build_networks(recipe["architecture"])
    loads = _loads(path, networks, files, dtype)
    reports = load_all(replace(load, ignored=(*load.ignored, *ignored_keys)) for load in loads)
    loaded = zip(loads, reports, strict=True)
    others = [(load, report) for load, report in loaded if str(load.path) != str(path)]
    _check_fingerprints(recipe.get("fingerprints", {}), others, asked=weights or {})
    if recipe.get("unet_lora"):
        merge_adapters(path, networks.network.unet)
    return networks


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return how to build and sample a stage-2 checkpoint; reads no weights.

    A file without a recipe (a released SUPIR file) is assumed to have SDXL's size, with the depth
    and connector inferred from its tensor names, and is sampled as in the released code.

    Returns:
        `architecture`: part -> what `build` needs; `weights`: files by setting;
        `sampler`: the same for the sampler settings; `options`: arguments of RestoreOptions.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a stage-2 checkpoint.
    """
    info = inspect_checkpoint(path, key="checkpoint")
    recipe: Any = json.loads(info.metadata.get("recipe", "null"))
    if recipe is None and {"control", "connector"} <= set(info.parts):
        recipe = released_recipe(control=info.control, connector=info.connector)
    if not isinstance(recipe, dict) or recipe.get("stage") != "supir":
        stage = f" of stage {recipe['stage']}" if isinstance(recipe, dict) else ""
        raise ValueError(
            f"{path}: not a stage-2 checkpoint, but {DESCRIPTIONS[info.kind]}{stage} with the "
            f"parts {', '.join(info.parts) or 'none'}; restoring needs one from "
            "experiment=zerosft or another stage-2 experiment, or a SUPIR file"
        )
    own = {"sdxl": str(path)} if {"unet", "vae", "clip_l", "clip_g"} <= set(info.parts) else {}
    if base := base_of(info.path):
        own |= {"sdxl": base}
    if "robust_encoder" in info.parts:
        own |= {"robust_encoder": str(path)}
    elif "robust_encoder" in info.metadata:  # "clean": see `convert`
        own |= {"robust_encoder": info.metadata["robust_encoder"]}
    return {**_with_two_keys(recipe), "weights": {**recipe.get("weights", {}), **own}}


def _with_two_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with `sampler`, which names its class, and `options`.

    Older checkpoints have a single key `restore`, or a sampler without a class.
    """
    kept = {key: value for key, value in recipe.items() if key != "restore"}
    if "restore" in recipe:
        options = dict(recipe["restore"])
        kept |= {"sampler": options.pop("settings"), "options": options}
    return {**kept, "sampler": {"_target_": SAMPLER, **kept["sampler"]}}


def _check_fingerprints(
    recorded: Mapping[str, str],
    loads: Sequence[tuple[Load, LoadReport]],
    *,
    asked: Mapping[str, str | None],
) -> None:
    """Refuse recorded files whose contents have changed; warn about files given instead.

    Raises:
        ValueError: A file at the recorded path holds other weights.
    """
    found = {
        part: (load, text) for load, report in loads for part, text in report.fingerprints.items()
    }
    for part, wanted in recorded.items():
        load, text = found.get(part, (None, None))
        if load is None or text == wanted:
            continue
        what = f"{load.path}: not the {WORDS.get(part, part)} that the checkpoint was trained with"
        if asked.get(load.key.removeprefix("weights.")) is None:
            raise ValueError(f"{what}; name the right file, {load.key}=FILE, or this one to use it")
        log.warning("%s (a copy in another precision differs too)", what)


def released_recipe(**options: str) -> dict[str, Any]:
    """Return the recipe of a released file; `options` are those of `sdxl_architecture`."""
    architecture = sdxl_architecture(**options)
    return {
        "stage": "supir",
        "architecture": architecture | {"denoiser": {"_target_": "open_supir.diffusion.Denoiser"}},
        "weights": {},
        "sampler": {"_target_": SAMPLER, **RELEASED["sampler"]},
        "options": RELEASED["options"],
    }


def build_networks(architecture: Mapping[str, Any]) -> Networks:
    """Build the networks; all but connector and denoiser on the meta device."""
    network = ControlledUNet(
        build_on_meta(architecture["unet"]),
        build_on_meta(architecture["control"]),
        build(architecture["connector"]),
    )
    vae: AutoencoderKL = build_on_meta(architecture["vae"])
    return Networks(
        network,
        build(architecture["denoiser"]),
        build_on_meta(architecture["conditioner"]),
        vae,
        RobustEncoder(vae),
    )


def _loads(
    path: str | Path,
    networks: Networks,
    files: Mapping[str, Any],
    dtype: torch.dtype,
) -> list[Load]:
    """Return the file each part is loaded from; later loads override earlier ones,
    and the robust encoder's file need not hold the convolution that it shares with the VAE."""
    network, denoiser, conditioner, vae, robust_encoder = networks
    ignored = ignored_for(denoiser.prediction)
    base: dict[str, nn.Module] = {
        "unet": network.unet,
        "clip_l": conditioner.clip_l,
        "clip_g": conditioner.clip_g,
    }
    coders: dict[str, nn.Module] = {"vae": vae, "robust_encoder": robust_encoder}
    trained: dict[str, nn.Module] = {"control": network.control, "connector": network.connector}
    sdxl, robust = files["sdxl"], files.get("robust_encoder")
    vae_key = "vae" if files.get("vae") else "sdxl"
    vae_file = files[vae_key]
    assert sdxl is not None and vae_file is not None  # load_networks has checked
    loads = [
        Load(
            path=sdxl,
            parts=base,
            dtype=dtype,
            key="weights.sdxl",
            ignored=ignored,
            loras=lora_files(files.get("loras")),
        ),
        Load(
            path=vae_file,
            parts=coders,
            taken_from={"robust_encoder": "vae"},
            dtype=torch.float32,
            key=f"weights.{vae_key}",
            ignored=ignored,
        ),
        Load(path=path, parts=trained, dtype=dtype, key="checkpoint"),
    ]
    if robust not in (None, "clean"):
        parts: dict[str, nn.Module] = {"robust_encoder": robust_encoder}
        key = "weights.robust_encoder"
        loads.append(Load(path=robust, parts=parts, dtype=torch.float32, key=key))
    return loads
