"""Base weights: what each training stage starts from, and from which files.

Parts that are loaded completely are built without memory (conf/module lists them) and get it here,
tensor by tensor.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from open_supir.base.dtypes import parse_dtype
from open_supir.base.run_folders import newest_checkpoint
from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.files import open_checkpoint
from open_supir.checkpoints.identify import refuse_unusable
from open_supir.checkpoints.load import Load, ignored_for, load_all, prediction_of
from open_supir.checkpoints.loras import LoraFile, lora_files
from open_supir.checkpoints.parts import read_contents
from open_supir.networks import Conditioner, ControlledUNet, RobustEncoder
from open_supir.training import (
    OneStepModule,
    PriorModule,
    RobustEncoderModule,
    SupirModule,
    VAEModule,
)

BASE_PARTS = ("unet", "clip_l", "clip_g", "vae", "robust_encoder")  # frozen in stage 2
UNETS = {SupirModule: "sdxl", PriorModule: "prior"}  # the key of `weights` that a UNet comes from


class BaseFile(NamedTuple):
    """A base file, the setting that names it, patterns of extra keys that it may hold, and LoRAs
    to merge into it.
    """

    path: str
    key: str
    ignored: tuple[str, ...]
    loras: tuple[LoraFile, ...] = ()

    def load(self, parts: dict[str, nn.Module], dtype: torch.dtype, **more: Any) -> Load:
        """Return a `Load` of parts from this file; `more` as in `load_parts`."""
        loras = self.loras if set(parts) - {"vae", "robust_encoder"} else ()
        named = {"path": self.path, "key": self.key, "ignored": self.ignored, "loras": loras}
        return Load(parts=parts, dtype=dtype, **named, **more)


def pick_inputs(
    stage: str, weights: Mapping[str, Any], *, runs_dir: str, resumed: Mapping[str, Any]
) -> tuple[dict[str, str | None], list[str]]:
    """Choose the files of earlier runs that a run starts from, where `weights` names none.

    Args:
        stage: vae, prior, robust_encoder or supir.
        weights: Files by the keys of conf/weights.
        runs_dir: Folder of all runs.
        resumed: Configuration of the run that this one resumes, whose files are kept; or empty.

    Returns:
        The chosen files by key of `weights`, and what was chosen, in words.

    Raises:
        FileNotFoundError: Stage 2 finds no robust encoder.
    """
    before = resumed.get("weights", {})
    why = "as in the resumed run"
    if stage == "supir" and weights["robust_encoder"] is None:
        path = before.get("robust_encoder")
        if path is None:
            supir, shipped = weights["supir"], weights["shipped"]
            path, why = find_robust_encoder(runs_dir, supir=supir, shipped=shipped)
        return {"robust_encoder": path}, [f"robust encoder: {why}, {path}"]
    if stage == "prior" and weights["vae"] is None:
        path, newest = before.get("vae"), newest_checkpoint(runs_dir, stage="vae")
        if path is None and newest is not None:
            path, why = str(newest), f"the newest of {runs_dir}"
        return {"vae": path}, [f"autoencoder: {why}, {path}"] if path else []
    return {}, []


def check_files(stage: str, weights: Mapping[str, Any]) -> None:
    """Check that the files a stage starts from are there and are weight files; reads headers.

    Raises:
        FileNotFoundError, ValueError: One is not; the message names its setting.
    """
    if stage != "prior" and weights["prior"] is not None:
        raise ValueError(
            f"weights.prior={weights['prior']} is what experiment=prior starts from; other stages "
            "take their UNet from weights.sdxl"
        )
    keys = {"vae": ("vae",), "prior": ("vae", "prior"), "supir": ("supir",)}.get(stage, ())
    if stage in ("robust_encoder", "supir"):
        keys = ("sdxl", "vae", "robust_encoder", *keys)
    for key in keys:
        if weights[key] not in (None, "clean"):
            open_checkpoint(weights[key], key=f"weights.{key}")


def load_base_weights(module: nn.Module, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Load the frozen parts of a training module and initialise the trained ones.

    Frozen parts are held in `weights.frozen_dtype`, trained ones in float32.

    Args:
        config: Of the run. Files that its `weights` leaves open are chosen by `pick_inputs`.
            `ignored_keys` are keys that the files may have in addition, see `load_parts`; a UNet
            that is loaded must predict what `denoiser.prediction` says.

    Returns:
        Entries of the checkpoint's recipe: `weights`, the files used by key, and `fingerprints` of
        the frozen parts.

    Raises:
        FileNotFoundError, KeyError, ValueError: A file is missing or wrong; the message names it.
    """
    weights, prediction = config["weights"], config["denoiser"]["prediction"]
    if isinstance(module, OneStepModule) and weights["supir"] is None:
        raise ValueError(
            "experiment=one_step starts from a finished stage 2: weights.supir=FILE, a checkpoint "
            "of experiment=zerosft or a SUPIR file"
        )
    picked, _ = pick_inputs(config["stage"], weights, runs_dir=config["runs_dir"], resumed={})
    weights = {**weights, **picked}
    if isinstance(module, VAEModule):
        path = weights["vae"]
        source = BaseFile(path, "weights.vae", ())
        loads = [] if path is None else [source.load({"vae": module.vae}, torch.float32)]
        used: dict[str, Any] = {} if path is None else {"vae": path}
    else:
        frozen = _frozen_dtype(weights["frozen_dtype"], str(config["trainer"]["precision"]))
        for kind, key in UNETS.items():
            if isinstance(module, kind) and weights[key] is not None:
                _check_prediction(weights[key], prediction, key=f"weights.{key}")
        loads, used = _loads(module, weights, frozen, ignored_for(prediction))
    more = config["ignored_keys"]
    reports = load_all(replace(load, ignored=(*load.ignored, *more)) for load in loads)
    if isinstance(module, SupirModule) and weights["supir"] is None:
        module.network.control.reset_hint()
    found = {part: text for report in reports for part, text in report.fingerprints.items()}
    frozen_parts = BASE_PARTS if isinstance(module, SupirModule) else ()
    return {
        "weights": used,
        "fingerprints": {part: found[part] for part in frozen_parts if part in found},
    }


def _loads(
    module: nn.Module, weights: Mapping[str, Any], frozen: torch.dtype, ignored: tuple[str, ...]
) -> tuple[list[Load], dict[str, Any]]:
    """Return what to load, and the files used by key of `weights`; frozen parts in `frozen`."""
    loras = lora_files(weights.get("loras"))
    if loras and not isinstance(module, SupirModule):
        raise ValueError("weights.loras: only stage 2 has a frozen UNet and text towers; leave out")
    sdxl = BaseFile(weights["sdxl"], "weights.sdxl", ignored, loras)
    vae = BaseFile(weights["vae"], "weights.vae", ignored) if weights["vae"] else sdxl
    used: dict[str, Any] = {"sdxl": weights["sdxl"], "vae": weights["vae"]}
    robust = None if weights["robust_encoder"] == "clean" else weights["robust_encoder"]
    if isinstance(module, PriorModule):
        loads = [vae.load({"vae": module.vae}, frozen), *_prior_loads(module, weights["prior"])]
        found = {"vae": weights["vae"]} if weights["vae"] else used
        return loads, found | {"prior": weights["prior"]}
    if isinstance(module, RobustEncoderModule):
        starts = _robust_encoder_loads(robust, module.robust_encoder, vae, dtype=torch.float32)
        return [vae.load({"vae": module.vae}, frozen), *starts], used | {"robust_encoder": robust}
    if isinstance(module, SupirModule):
        base: dict[str, nn.Module] = {"unet": module.network.unet, **_towers(module.conditioner)}
        loads = [
            sdxl.load(base, frozen),
            vae.load({"vae": module.vae}, frozen),
            _trained_load(module.network, sdxl, supir=weights["supir"]),
            *_robust_encoder_loads(robust, module.robust_encoder, vae, dtype=frozen),
        ]
        recorded: dict[str, Any] = {"robust_encoder": robust, "supir": weights["supir"]}
        recorded |= {"loras": [lora.plain() for lora in loras]} if loras else {}
        return loads, used | recorded
    raise TypeError(f"no base weights are known for {type(module).__name__}")


def _towers(conditioner: Conditioner) -> dict[str, nn.Module]:
    return {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}


def _prior_loads(module: PriorModule, path: str | None) -> list[Load]:
    """Start from the UNet and text towers of another prior, if `path` is given."""
    if path is None:
        return []
    parts: dict[str, nn.Module] = {"unet": module.unet, **_towers(module.conditioner)}
    return [Load(path=path, parts=parts, dtype=torch.float32, key="weights.prior")]


def _trained_load(network: ControlledUNet, sdxl: BaseFile, *, supir: str | None) -> Load:
    """Start adaptor and connector from the file `supir`, or else the adaptor from SDXL's encoder.

    Both are trained, and so held in float32 whatever the file's dtype.
    """
    trained: dict[str, nn.Module] = {"control": network.control, "connector": network.connector}
    if supir is not None:
        return Load(path=supir, parts=trained, dtype=torch.float32, key="weights.supir")
    return sdxl.load(
        {"control": network.control},
        torch.float32,
        taken_from={"control": "unet"},
        expected_missing=("control.input_hint_block.*",),
    )


def find_robust_encoder(
    runs_dir: str, *, supir: str | None, shipped: str | None
) -> tuple[str, str]:
    """Find the robust encoder's file: `supir` if it holds one, else the newest run's checkpoint,
    else `shipped`.

    Args:
        runs_dir: Folder of all runs.
        supir: The file that adaptor and connector come from, if any.
        shipped: The file that ships with the prior, if any.

    Returns:
        A path, and why it was chosen.

    Raises:
        FileNotFoundError: No robust encoder was found.
    """
    if supir is not None and "robust_encoder" in inspect_checkpoint(supir).parts:
        return supir, "that of weights.supir"
    newest = newest_checkpoint(runs_dir, stage="robust_encoder")
    if newest is not None:
        return str(newest), f"the newest of {runs_dir}"
    if shipped is None:
        raise FileNotFoundError(
            f"no robust encoder: {runs_dir} has no stage 1 checkpoint. Run "
            "experiment=robust_encoder first, or set weights.robust_encoder=FILE (or =clean for "
            "the ordinary encoder)"
        )
    return shipped, "the one shipped with the prior"


def _robust_encoder_loads(
    path: str | None, robust_encoder: RobustEncoder, vae: BaseFile, *, dtype: torch.dtype
) -> list[Load]:
    """Start from a copy of the VAE's encoder, then load the file `path`, if given; `quant_conv`
    stays the VAE's.
    """
    parts: dict[str, nn.Module] = {"robust_encoder": robust_encoder}
    loads = [vae.load(parts, dtype, taken_from={"robust_encoder": "vae"})]
    if path is not None:
        loads.append(Load(path=path, parts=parts, dtype=dtype, key="weights.robust_encoder"))
    return loads


def _check_prediction(path: str, wanted: str, *, key: str) -> None:
    checkpoint = open_checkpoint(path, key=key)
    refuse_unusable(checkpoint, ("unet",), key=key)
    if "unet" not in read_contents(checkpoint).parts:
        return  # loading says what the file is
    found = prediction_of(path, key=key)
    if found != wanted:
        raise ValueError(
            f"{key}={path}: the network predicts {found}, but {wanted} is expected; train with "
            f"denoiser={found} or use another base"
        )


def _frozen_dtype(name: str, precision: str) -> torch.dtype:
    dtype = parse_dtype(name)
    if dtype == torch.float16:
        raise ValueError("weights.frozen_dtype=float16: SDXL's VAE overflows; use bfloat16")
    if dtype != torch.float32 and precision != "bf16-mixed":
        raise ValueError(
            f"weights.frozen_dtype={name} needs trainer.precision=bf16-mixed, got {precision}: "
            "trained parts stay float32, and only autocast lets them work with the frozen ones"
        )
    return dtype
