"""A model's folder for the hub: diffusers' layout, with config.json and a model card."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from open_supir.base.files import write_text
from open_supir.checkpoints.export import Part, export_diffusers
from open_supir.checkpoints.model_card import write_card_text

CONFIG = "config.json"
# For DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER)
PIPELINE = {"_class_name": "SupirPipeline", "model": ["open_supir.diffusers", "SupirModel"]}
PIPELINE_CODE = '"""The pipeline of this folder for diffusers; needs the package open-supir."""\n\n'
PIPELINE_CODE += "from open_supir.diffusers import SupirPipeline  # noqa: F401\n"


def export_hub(
    path: str | Path,
    parts: Mapping[str, Part],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    tokens: tuple[Mapping[str, int], Sequence[str]] | None = None,
    base: str | None = None,
    evaluation: str | Path | None = None,
) -> None:
    """Write a folder that `Restorer.from_pretrained` reads.

    `config.json` has the recipe, the parts, the base and the metadata; `model_index.json` and
    `pipeline.py` make it a pipeline of diffusers.

    Args:
        parts, metadata, dtype, tokens: As in `export_diffusers`; the metadata's recipe is needed.
        base: Address (hf://...) of the base, if it is not among the parts.
        evaluation: A folder that `src.evaluate` wrote; its table goes into the card.

    Raises:
        ValueError: There is no recipe of stage 2.
    """
    root = Path(path)
    recipe = json.loads(metadata.get("recipe", "null")) or {}
    if recipe.get("stage") != "supir":
        raise ValueError("format=hub needs a stage-2 checkpoint of this project, with its recipe")
    heads = recipe["architecture"]["unet"]["head_channels"]
    config: dict[str, Any] = {
        "library_name": "open-supir",
        "version": version("open-supir"),
        "parts": list(parts),
        "base": base,
        "metadata": {key: value for key, value in metadata.items() if key != "recipe"},
        "recipe": recipe,
    }
    card = write_card_text(root.name, config, evaluation=evaluation)
    export_diffusers(root, parts, metadata, dtype=dtype, head_channels=heads, tokens=tokens)
    write_text(root / "model_index.json", json.dumps(PIPELINE, indent=2) + "\n")
    write_text(root / "pipeline.py", PIPELINE_CODE)
    write_text(root / CONFIG, json.dumps(config, indent=1) + "\n")
    write_text(root / "README.md", card)


def base_of(folder: Path) -> str | None:
    """Return the address of the base that a model's folder needs; None if it holds it, or if it is
    not one of `export_hub`.
    """
    path = folder / CONFIG
    return json.loads(path.read_text()).get("base") if path.is_file() else None
