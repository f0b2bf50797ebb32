"""The rows of an evaluation's table: the outputs of a checkpoint and of other systems."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.hashes import weights_sha256
from open_supir.base.places import located
from open_supir.evaluation.baselines import digest_folder, folder_outputs, spandrel_models
from open_supir.evaluation.samples import Method, Output, Sample
from open_supir.inference import Restoration, Restorer
from open_supir.inference.captioner import Captioner
from open_supir.inference.model import Model

# methods by name, and what the values of each depend on
Methods = tuple[dict[str, Method], dict[str, dict[str, Any]]]
OWN_ROWS = ("lq", "hq", "ordinary_encoder", "robust_encoder", "restored", "average")


def load_methods(
    model: Model | None,
    further: Mapping[str, Model],
    others: Methods,
    *,
    sampler: Mapping[str, Any],
    options: Mapping[str, Any],
    captioner: Captioner,
    described: Mapping[str, Any],
    device: torch.device,
) -> Methods:
    """Load checkpoints; return all methods, and what the values of each depend on.

    Args:
        model: The checkpoint with all its rows.
        further: Checkpoints by name, of which only the restored pictures are measured.
        others: Of other systems, see `other_methods`.
        sampler, options: See `Model.options`.
        described: Configuration of the captioner.

    Raises:
        ValueError: The name of a further checkpoint is that of another row.
    """

    def load(model: Model) -> Methods:
        restorer = model.load(model.options(sampler, options), captioner=captioner, device=device)
        return model_methods(restorer, model, captioner=described)

    methods, settings = ({}, {}) if model is None else load(model)
    methods, settings = methods | others[0], settings | others[1]
    for name, other in further.items():
        if name in OWN_ROWS or name in methods:
            raise ValueError(f"checkpoints: row {name!r} already exists; choose another name")
        made, depends = load(other)
        methods[name], settings[name] = made["restored"], depends["restored"]
    return methods, settings


def model_methods(restorer: Restorer, model: Model, *, captioner: Mapping[str, Any]) -> Methods:
    """Return the methods of a checkpoint, and what the values of each depend on.

    Args:
        restorer: The loaded checkpoint, with the options and the captioner to measure.
    """
    given = {key: path for key, path in model.weights.items() if path and key != "loras"}
    files: dict[str, Any] = {key: _weights_hash(path) for key, path in given.items()}
    files |= {"loras": model.loras} if model.loras else {}
    files |= {"dtype": model.dtype} if model.dtype != "float32" else {}
    loaded: dict[str, Any] = {"checkpoint": weights_sha256(model.checkpoint), **files}
    restored = {**loaded, "captioner": captioner, "options": restorer.options.described()}
    samples = _Samples(restorer)
    methods: dict[str, Method] = {
        "ordinary_encoder": lambda sample: restorer.clean(sample.lq, robust=False),
        "robust_encoder": lambda sample: restorer.clean(sample.lq),
        "restored": samples.first,
    }
    settings = {"ordinary_encoder": loaded, "robust_encoder": loaded, "restored": restored}
    if restorer.options.average:
        methods["average"], settings["average"] = samples.average, restored
    return methods, settings


class _Samples:
    """A checkpoint's restorations as rows; those of the last image are kept for the next row."""

    def __init__(self, restorer: Restorer) -> None:
        self.restorer = restorer
        self._last: tuple[Sample, Restoration] | None = None

    def first(self, sample: Sample) -> Output:
        """Return the first restoration, and how much several of them disagree, in levels."""
        result = self._restored(sample)
        levels = result.disagreement
        values = {} if levels is None else {"disagreement": float(levels.mean())}
        return Output(result.restored, values)

    def average(self, sample: Sample) -> Tensor:
        """Return the mean of the restorations."""
        return self._restored(sample).average

    def _restored(self, sample: Sample) -> Restoration:
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self.restorer(sample.lq, source=sample.source)
        return self._last[1]


def other_methods(
    outputs: str | Mapping[str, str] | None,
    models: Mapping[str, str] | None,
    device: torch.device,
) -> Methods:
    """Return the methods of other systems, and what the values of each depend on.

    Args:
        outputs: Folders of pictures by name, or one folder, whose name becomes the method's.
        models: Weight files of spandrel models by name.

    Raises:
        ValueError: Two rows would have the same name.
    """
    folders, files = _named(outputs), {str(name): file for name, file in (models or {}).items()}
    taken: set[str] = set(OWN_ROWS)
    for name in [*folders, *files]:
        if name in taken:
            raise ValueError(f"row {name!r} already exists; rename: outputs={{NAME: FOLDER}}")
        taken.add(name)
    methods = folder_outputs(folders) | spandrel_models(files, device)
    settings = {name: {"outputs": digest_folder(folder)} for name, folder in folders.items()}
    settings |= {name: {"weights": sha256_of(Path(file))} for name, file in files.items()}
    return methods, settings


def _named(outputs: str | Mapping[str, str] | None) -> dict[str, Path]:
    if isinstance(outputs, str):
        return {Path(outputs).name: Path(outputs)}
    return {str(name): Path(folder) for name, folder in (outputs or {}).items()}


def _weights_hash(path: str) -> str:
    file = located(path)
    return weights_sha256(file) if file.is_file() else path  # a diffusers folder, or `clean`
