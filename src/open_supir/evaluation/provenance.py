"""Provenance of an evaluation's records: facts about each input, and software versions.

`inputs.jsonl` has one row per image, `environment.json` the versions. Neither contains paths of the
machine, so a report can be shared.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import torch

from open_supir.base.files import sha256_of, write_text
from open_supir.base.images import to_uint8
from open_supir.evaluation.metrics import select_metrics
from open_supir.evaluation.samples import Sample, as_json

INPUTS, ENVIRONMENT = "inputs.jsonl", "environment.json"
PACKAGES = ("torch", "torchvision", "torchmetrics", "pyiqa", "scikit-image", "spandrel", "numpy")


class InputFacts(TypedDict):
    """One row of inputs.jsonl.

    Fields:
        image: Name in the records.
        file: Name of the file it was read from, without its folder.
        sha256: SHA-256 of that file.
        pixels: SHA-256 of LQ and HQ as 8-bit values, on which all values depend.
        lq_size, hq_size: (height, width); hq_size is None without a reference.
        degradation: How LQ was made; empty if LQ was read from a file.
    """

    image: str
    file: str | None
    sha256: str | None
    pixels: str
    lq_size: list[int]
    hq_size: list[int] | None
    degradation: dict[str, Any]


def describe_input(sample: Sample) -> InputFacts:
    """Return the row of inputs.jsonl for one sample."""
    source = sample.source
    pixels = hashlib.sha256()
    for image in (sample.lq, sample.hq):
        if image is not None:
            pixels.update(to_uint8(image.detach().cpu()).contiguous().numpy().tobytes())
    return InputFacts(
        image=sample.name,
        file=None if source is None else source.name,
        sha256=None if source is None else sha256_of(source),
        pixels=pixels.hexdigest(),
        lq_size=list(sample.lq.shape[-2:]),
        hq_size=None if sample.hq is None else list(sample.hq.shape[-2:]),
        degradation=as_json(sample.degradation),
    )


def write_inputs(inputs: Iterable[InputFacts], folder: Path) -> None:
    """Write inputs.jsonl atomically."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in inputs]
    write_text(folder / INPUTS, "".join(lines))


def read_inputs(folder: Path) -> dict[str, InputFacts]:
    """Return the inputs of an evaluation by image; empty if there is no file."""
    path = folder / INPUTS
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["image"]: row for row in rows}


def describe_environment(device: torch.device, **facts: Any) -> dict[str, Any]:
    """Return versions, device and the given facts, as JSON values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    python = {"python": platform.python_version()}
    return as_json({**facts, "device": f"{device.type} ({name})", "versions": python | versions})


def write_environment(environment: Mapping[str, Any], folder: Path) -> None:
    """Write environment.json atomically."""
    write_text(folder / ENVIRONMENT, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")


def read_environment(folder: Path) -> dict[str, Any]:
    """Read environment.json; empty if there is no file."""
    path = folder / ENVIRONMENT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def weight_hashes(metrics: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the weight files in use, by path below torch's hub folder."""
    hub = Path(torch.hub.get_dir())
    files = {file.path for metric in select_metrics(metrics) for file in metric.weights}
    return {name: sha256_of(hub / name) for name in sorted(files) if (hub / name).is_file()}
