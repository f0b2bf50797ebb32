"""The README.md of a model's folder, with the metadata that the hub reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from open_supir.base.hub import HF

METHOD = "restored"  # the row of an evaluation that the card's metrics are of
_LICENCES = {
    "CreativeML Open RAIL++-M": "openrail++",
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
}


def write_card_text(
    name: str, config: Mapping[str, Any], *, evaluation: str | Path | None = None
) -> str:
    """Return the card as Markdown.

    Args:
        name: What the model is called.
        config: Of the folder; see `export_hub`.
        evaluation: A folder that `src.evaluate` wrote; its table goes into the card.

    Raises:
        FileNotFoundError: The folder holds no evaluation.
    """
    from huggingface_hub import EvalResult, ModelCardData

    scores = {} if evaluation is None else _scores(Path(evaluation))
    words = config["metadata"]
    stated = words.get("license", "unstated")
    licence = next((word for text, word in _LICENCES.items() if text in stated), "other")
    data = ModelCardData(
        base_model=_base_model(config.get("base")),
        license=licence,
        license_name=stated if licence == "other" else None,
        library_name="open-supir",
        pipeline_tag="image-to-image",
        tags=["image-restoration", "super-resolution", "supir", "stable-diffusion-xl"],
        model_name=name if scores else None,
        eval_results=[
            EvalResult(task_type="image-to-image", dataset_type="images", dataset_name=protocol,
                       metric_type=metric, metric_value=value)
            for (protocol, metric), value in scores.items()
        ] or None,
    )  # fmt: skip
    table = None if evaluation is None else (Path(evaluation) / "table.md").read_text()
    return f"---\n{data.to_yaml()}\n---\n\n{_body(name, config, table)}"


def _base_model(base: str | None) -> str | None:
    """Return OWNER/REPO of a base named hf://OWNER/REPO/FILE."""
    return "/".join(base.removeprefix(HF).split("/")[:2]) if base and base.startswith(HF) else None


def _scores(folder: Path) -> dict[tuple[str, str], float]:
    """Return the mean of each metric over the images, for restored pictures."""
    path = folder / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"evaluation={folder}: holds no records.jsonl; run src.evaluate")
    values: dict[tuple[str, str], list[float]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["method"] == METHOD and row["value"] is not None:
            protocol = str(row["settings"].get("protocol", "own images"))
            values.setdefault((protocol, row["metric"]), []).append(row["value"])
    return {key: round(fmean(found), 4) for key, found in values.items()}


def _body(name: str, config: Mapping[str, Any], table: str | None) -> str:
    words, recipe = config["metadata"], config["recipe"]
    base = config.get("base")
    lines = [
        f"# {name}",
        "",
        "A photo restorer after SUPIR (arXiv:2401.13627), trained with open-supir. Parts: "
        f"{', '.join(config['parts'])}.",
        "",
        "```python",
        "from open_supir.inference import Restorer",
        "",
        'restorer = Restorer.from_pretrained("OWNER/REPO")  # or this folder',
        "restored = restorer(image).restored  # image: float tensor (3, H, W) in [0, 1]",
        "```",
        "",
        f"The base comes from {base}." if base else "The base is in this folder.",
        f"Licence: {words.get('license', 'unstated')}.",
    ]
    if table:
        lines += ["", "## Evaluation", "", table.strip()]
    lines += ["", "## Recipe", "", "```json", json.dumps(recipe, indent=1), "```", ""]
    return "\n".join(lines)
