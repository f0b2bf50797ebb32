"""Convert weight files between layouts, without building a network."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from open_supir.base.dtypes import parse_dtype
from open_supir.base.hashes import weights_sha256
from open_supir.base.hub import is_named, named
from open_supir.base.places import CONF, SHIPPED, located
from open_supir.checkpoints.adapters import adapter_changes
from open_supir.checkpoints.export import (
    SDXL_PARTS,
    SUPIR_PARTS,
    export_diffusers,
    export_native,
    export_sdxl,
    export_supir,
)
from open_supir.checkpoints.files import open_checkpoint
from open_supir.checkpoints.hub_folder import export_hub
from open_supir.checkpoints.identify import refuse_unusable
from open_supir.checkpoints.keymaps import PARTS
from open_supir.checkpoints.loras import Change, LoraFile, MergedTensors, lora_files, with_loras
from open_supir.checkpoints.parts import Contents, PartTensors, read_contents

log = logging.getLogger(__name__)

UNSTATED = "unstated"
OF_FILES = ("weights", "fingerprints")  # entries of a recipe about the base files it was trained on
ENCODER = "robust_encoder"
MERGED = "merged_loras"  # metadata: name, scale and SHA-256 of each, in order
ADD_ENCODER = (
    "add a file that holds it, input=[FILE,STAGE_2.ckpt], or leave it out with "
    "parts=[control,connector] and name one when restoring"
)
FORMATS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "supir": (export_supir, SUPIR_PARTS),
    "sdxl": (export_sdxl, SDXL_PARTS),
    "diffusers": (export_diffusers, PARTS),
    "native": (export_native, PARTS),
    "hub": (export_hub, PARTS),  # with everything but a base that has a name
    "complete": (export_native, PARTS),  # with everything that a checkpoint names
}


FOLDERS = ("diffusers", "hub")  # formats that are a folder


class MergedInput(NamedTuple):
    """The combined contents of the input files."""

    parts: dict[str, PartTensors]  # part -> tensors by our names
    metadata: dict[str, str]  # the files' metadata
    # the base files recorded in a training checkpoint among them, by setting
    weights: dict[str, Any]
    # LoRA layers of one-step training, by the UNet's weights
    adapters: Mapping[str, Change]


def convert(
    settings: Mapping[str, Any],
    *,
    vocabulary: Callable[[], tuple[dict[str, int], list[str]]] | None = None,
) -> Path:
    """Convert `settings["input"]` as conf/convert.yaml describes; returns the output's path.

    Args:
        vocabulary: Returns CLIP's tokens and merges, which format=diffusers stores beside text
            towers; None omits them.

    Raises:
        FileNotFoundError, ValueError, KeyError: A setting or file is wrong; the message says how.
    """
    if not settings["input"] or not settings["output"]:
        raise ValueError("give input=FILE output=FILE, or inspect=FILE")
    export, holds = _known("format", settings["format"], FORMATS)
    dtype = None if settings["dtype"] is None else parse_dtype(settings["dtype"])
    for part in settings["parts"] or ():
        _known("parts", part, dict.fromkeys(holds))
    output = Path(settings["output"])
    _check_output(output, settings["format"], settings["overwrite"])

    sources = settings["input"]
    given = _read([sources] if isinstance(sources, str) else sources)
    if ENCODER in (settings["parts"] or holds) and "control" in given.parts:
        given = _with_encoder(given)
    base = _named_base(settings["base"] or given.weights.get("sdxl"))
    is_whole = not settings["parts"] and (base is None or bool(given.adapters))
    if settings["format"] == "complete" or (settings["format"] == "hub" and is_whole):
        given = _with_base(given)
    given = _with_loras(given, lora_files(settings["loras"]))
    wanted = settings["parts"] or [part for part in holds if part in given.parts]
    lost = [part for part in wanted if part not in given.parts]
    if lost or not wanted:
        raise ValueError(
            f"the input holds the parts {', '.join(given.parts) or 'none'}; "
            f"format={settings['format']} needs {', '.join(lost or holds)}"
        )
    if given.adapters:
        given = _with_adapters(given, wanted)
    left = [part for part in given.parts if part not in wanted]
    if left:
        log.info("left out of %s: %s", output, ", ".join(left))
    if settings["format"] in FOLDERS and {"clip_l", "clip_g"} <= set(wanted) and vocabulary:
        export = partial(export, tokens=vocabulary())
    if settings["format"] == "hub":
        base = None if "unet" in wanted else base
        export = partial(export, base=base, evaluation=settings["evaluation"])
    metadata = _metadata(settings, given, wanted)
    export(output, {part: given.parts[part] for part in wanted}, metadata, dtype=dtype)
    return output


def _with_encoder(given: MergedInput) -> MergedInput:
    """Add the robust encoder that a training checkpoint records, if the files hold none."""
    if ENCODER in given.parts or given.metadata.get(ENCODER) == "clean":
        return given
    path = given.weights.get(ENCODER)
    if path is None:
        log.warning("no robust encoder: restoring will need weights.robust_encoder=FILE")
        return given
    added = _parts_of(path, "robust encoder")
    if ENCODER not in added:
        raise ValueError(f"{path}: holds no robust encoder any more; {ADD_ENCODER}")
    log.info("robust encoder: of %s, which the checkpoint names", path)
    return _with(given, {ENCODER: added[ENCODER]})


def _with_base(given: MergedInput) -> MergedInput:
    """Add the parts of SDXL, from the files that a training checkpoint records."""
    for key, parts in (("vae", ("vae",)), ("sdxl", SDXL_PARTS)):
        path = given.weights.get(key)
        lacking = [part for part in parts if part not in given.parts]
        if path and lacking:
            added = _parts_of(path, f"base, weights.{key},")
            given = _with(given, {part: added[part] for part in lacking if part in added})
            log.info("%s: of %s, which the checkpoint names", ", ".join(lacking), path)
            if "unet" in lacking:
                given = _with_loras(given, lora_files(given.weights.get("loras")))
    lost = [part for part in PARTS if part not in given.parts and part != ENCODER]
    if lost:
        raise ValueError(
            f"a whole model lacks {', '.join(lost)}; add the files that hold them to "
            "input=[SDXL_FILE,STAGE_2_FILE]"
        )
    return given


def _named_base(base: str | None) -> str | None:
    """Return the address of a base that is a name of the hub; None for a file."""
    return named(base, CONF).address if base and is_named(base, CONF) else None


def _with_loras(given: MergedInput, loras: Sequence[LoraFile]) -> MergedInput:
    """Merge LoRAs into the base, and record them in the metadata."""
    if not loras:
        return given
    if "unet" not in given.parts:
        raise ValueError(
            "loras: the input holds no UNet to merge them into; add the base: input=[SDXL_FILE,...]"
        )
    merged = with_loras(Contents(parts=given.parts, unknown=()), loras)
    before = json.loads(given.metadata.get(MERGED, "[]"))
    words = {MERGED: json.dumps([*before, *(lora.described() for lora in loras)])}
    return given._replace(parts=merged.parts, metadata=given.metadata | words)


def _with_adapters(given: MergedInput, wanted: Sequence[str]) -> MergedInput:
    """Merge the LoRA layers of one-step training into the UNet."""
    if {"control", "connector"} & set(wanted) and not set(SDXL_PARTS) <= set(wanted):
        raise ValueError(
            "the checkpoint has LoRA layers on the UNet (one_step.unet_lora), so its adaptor works "
            "only with that UNet; write both: format=complete"
        )
    if "unet" not in wanted:
        return given
    changes = {name: [("", change)] for name, change in given.adapters.items()}
    return _with(given, {"unet": MergedTensors(given.parts["unet"], changes)})


def _with(given: MergedInput, added: Mapping[str, PartTensors]) -> MergedInput:
    parts = {**given.parts, **added}
    return given._replace(parts={part: parts[part] for part in PARTS if part in parts})


def _parts_of(path: str, what: str) -> Mapping[str, PartTensors]:
    if not located(path).exists():
        raise FileNotFoundError(
            f"{path}: the {what} that the checkpoint was trained with is no longer there; "
            f"{ADD_ENCODER if what == 'robust encoder' else 'add it: input=[FILE,STAGE_2.ckpt]'}"
        )
    return read_contents(open_checkpoint(path, key="input")).parts


def _metadata(
    settings: Mapping[str, Any], given: MergedInput, wanted: Sequence[str]
) -> dict[str, str]:
    """Return the output's metadata: base, licence, and the user's own entries."""
    words = dict(given.metadata)
    if ENCODER in wanted:
        words.pop(ENCODER, None)
    if settings["base"] or not set(wanted) & set(SDXL_PARTS):
        words |= _base_words(settings["base"], given.weights.get("sdxl"))
    if settings["license"]:
        words["license"] = settings["license"]
    words.setdefault("license", words.get("base_license", UNSTATED))
    if words["license"] == UNSTATED:
        log.warning("neither the input nor its base states a licence; set license=...")
    if given.weights.get("loras") and "unet" not in wanted:
        trained_on = [lora.described() for lora in lora_files(given.weights["loras"])]
        words["base_loras"] = json.dumps(trained_on)
    return words | {key: str(value) for key, value in settings["metadata"].items()}


def _base_words(wanted: str | None, recorded: str | None) -> dict[str, str]:
    """Return metadata of the SDXL file that trained weights belong to.

    It is the file asked for, else the one recorded in the training checkpoint, if it still exists.
    """
    path = wanted or recorded
    if path is None:
        return {}
    if wanted is None and not located(path).exists():
        log.warning("the base %s no longer exists: no hash recorded; set base=FILE", path)
        return {"base": Path(path).name}
    checkpoint = open_checkpoint(path, key="base")
    licence = checkpoint.metadata.get("license") or checkpoint.metadata.get("modelspec.license")
    words = {"base": checkpoint.path.name, "base_sha256": weights_sha256(checkpoint.path)}
    return words | {"base_license": licence or UNSTATED}


def _read(paths: Sequence[str]) -> MergedInput:
    """Return the contents of all files; parts of a later file replace those of an earlier one."""
    parts: dict[str, PartTensors] = {}
    words: dict[str, str] = {}
    weights: dict[str, Any] = {}
    adapters: dict[str, Change] = {}
    for path in paths:
        checkpoint = open_checkpoint(path, key="input")
        refuse_unusable(checkpoint, PARTS, key="input")
        contents = read_contents(checkpoint)
        if contents.unknown:
            log.warning(
                "%s: left out %d keys of no known part, first: %s",
                path,
                len(contents.unknown),
                contents.unknown[0],
            )
        held = dict(checkpoint.metadata)
        recipe = json.loads(held.pop("recipe", "null")) or {}
        if "control" in contents.parts:
            adapters = adapter_changes(checkpoint) if recipe.get("unet_lora") else {}
        if recipe.get("unet_lora"):
            contents.parts.pop("unet", None)  # the LoRA layers alone
        parts |= contents.parts
        named = recipe.get("weights", {})
        prediction = recipe.get("architecture", {}).get("denoiser", {}).get("prediction", "eps")
        if "unet" in contents.parts and prediction != "eps":
            words["prediction"] = prediction
        if recipe.get("stage") == "supir":  # how to restore with the file
            words["recipe"] = json.dumps(_portable(recipe))
            words |= {ENCODER: "clean"} if named.get(ENCODER, "") is None else {}
            weights |= named
        elif named.get("sdxl"):
            weights["sdxl"] = named["sdxl"]
        # step, licence and so on are taken from the adaptor's file, if there is one
        words = words | held if "control" in contents.parts else held | words
    own = ("format", "layout", "control", "connector")  # the writer sets these
    words = {key: value for key, value in words.items() if key not in own}
    kept = {part: parts[part] for part in PARTS if part in parts}
    return MergedInput(kept, words, weights, adapters)


def _portable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without local paths; base files that ship with the code stay named.

    Nor with LoRA layers on the UNet: they are merged.
    """
    base = {key: str(recipe.get("weights", {}).get(key)) for key in ("sdxl", ENCODER)}
    ships = {key: path for key, path in base.items() if path.startswith(SHIPPED)}
    kept = {key: value for key, value in recipe.items() if key not in (*OF_FILES, "unet_lora")}
    if ships:
        kept |= {"weights": ships, "fingerprints": recipe.get("fingerprints", {})}
    return kept


def _check_output(output: Path, name: str, overwrite: bool) -> None:
    if name not in FOLDERS and output.suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors for format={name}, got {output}")
    if not overwrite and output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"{output} exists; set overwrite=true to replace it")


def _known(setting: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"unknown {setting} {value!r}; known: {', '.join(choices)}")
    return choices[value]
