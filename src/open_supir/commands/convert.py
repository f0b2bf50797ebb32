"""Convert weight files between layouts, or tell what one is: python -m src.convert inspect=FILE."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from open_supir.base.cli import command
from open_supir.base.dtypes import parse_dtype
from open_supir.base.files import sha256_of
from open_supir.base.places import located
from open_supir.checkpoints import (
    export_diffusers,
    export_native,
    export_sdxl,
    export_supir,
    inspect_checkpoint,
    open_checkpoint,
)
from open_supir.checkpoints.export import SDXL_PARTS, SUPIR_PARTS
from open_supir.checkpoints.identify import refuse_unusable
from open_supir.checkpoints.keymaps import PARTS
from open_supir.checkpoints.parts import read_contents
from open_supir.networks.conditioner import vocabulary

log = logging.getLogger(__name__)

UNSTATED = "unstated"
FORMATS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "supir": (export_supir, SUPIR_PARTS),
    "sdxl": (export_sdxl, SDXL_PARTS),
    "diffusers": (export_diffusers, PARTS),
    "native": (export_native, PARTS),
}


def convert(settings: Mapping[str, Any]) -> Path:
    """Convert `settings["input"]` as conf/convert.yaml describes; returns the output's path.

    Raises:
        FileNotFoundError, ValueError, KeyError: A setting or a file is wrong; the message says how.
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
    parts, words, recorded_base = _read([sources] if isinstance(sources, str) else sources)
    wanted = settings["parts"] or [part for part in holds if part in parts]
    lost = [part for part in wanted if part not in parts]
    if lost or not wanted:
        raise ValueError(
            f"the input holds the parts {', '.join(parts) or 'none'}; "
            f"format={settings['format']} needs {', '.join(lost or holds)}"
        )
    left = [part for part in parts if part not in wanted]
    if left:
        log.info("left out of %s: %s", output, ", ".join(left))
    if settings["base"] or not set(wanted) & set(SDXL_PARTS):
        words |= _base_words(settings["base"], recorded_base)
    if settings["license"]:
        words["license"] = settings["license"]
    words.setdefault("license", words.get("base_license", UNSTATED))
    if words["license"] == UNSTATED:
        log.warning("no licence is stated in the input or in its base; say license=...")
    words |= {key: str(value) for key, value in settings["metadata"].items()}
    if settings["format"] == "diffusers" and {"clip_l", "clip_g"} <= set(wanted):
        export = partial(export, tokens=vocabulary())
    export(output, {part: parts[part] for part in wanted}, words, dtype=dtype)
    return output


def _base_words(wanted: str | None, recorded: str | None) -> dict[str, str]:
    """Say which SDXL file trained weights belong to: as asked, else the one that the training
    checkpoint names, if it is still there.
    """
    path = wanted or recorded
    if path is None:
        return {}
    if wanted is None and not located(path).exists():
        log.warning("%s, which was trained on, is not there: no hash; give base=FILE", path)
        return {"base": Path(path).name}
    checkpoint = open_checkpoint(path, key="base")
    licence = checkpoint.metadata.get("license") or checkpoint.metadata.get("modelspec.license")
    words = {"base": checkpoint.path.name, "base_sha256": sha256_of(checkpoint.path)}
    return words | {"base_license": licence or UNSTATED}


def _read(
    paths: list[str],
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, str], str | None]:
    """Return the parts of all files, their words about themselves, and the base that a training
    checkpoint among them names.
    """
    parts: dict[str, Mapping[str, Tensor]] = {}
    words: dict[str, str] = {}
    base = None
    for path in paths:
        checkpoint = open_checkpoint(path, key="input")
        refuse_unusable(checkpoint, PARTS, key="input")
        contents = read_contents(checkpoint)
        if contents.unknown:
            log.warning(
                "%s: %d keys of no known part are left out, first: %s",
                path,
                len(contents.unknown),
                contents.unknown[0],
            )
        parts |= contents.parts
        held = dict(checkpoint.metadata)
        recipe = json.loads(held.pop("recipe", "null")) or {}
        base = recipe.get("weights", {}).get("sdxl") or base
        if recipe.get("stage") == "supir":  # what restores with the file; paths are this machine's
            words["recipe"] = json.dumps({k: v for k, v in recipe.items() if k != "weights"})
        # the step, the licence and so on are those of the adaptor, if there is one
        words = words | held if "control" in contents.parts else held | words
    own = ("format", "layout", "control", "connector")  # the writer's to say
    words = {key: value for key, value in words.items() if key not in own}
    return {part: parts[part] for part in PARTS if part in parts}, words, base


def _check_output(output: Path, name: str, overwrite: bool) -> None:
    if name != "diffusers" and output.suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors for format={name}, got {output}")
    if not overwrite and output.exists() and (output.is_file() or any(output.iterdir())):
        raise ValueError(f"{output} exists; say overwrite=true to replace it")


def _known(setting: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"unknown {setting} {value!r}; known: {', '.join(choices)}")
    return choices[value]


@command("convert")
def main(cfg: DictConfig) -> None:
    """Run the conversion or inspection that the command line asks for."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    if settings["inspect"]:
        print(inspect_checkpoint(settings["inspect"], key="inspect"))
    else:
        print(inspect_checkpoint(convert({str(key): held for key, held in settings.items()})))


if __name__ == "__main__":
    main()
