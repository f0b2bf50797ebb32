"""Folders of photographs: what to restore, where to, what is done already, and its record.

Beside each restored image lies a record, NAME.json, written last: it names the input, the outputs
and everything that made them, with hashes. An image is done when its record fits.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from open_supir.base.files import sha256_of, write_bytes
from open_supir.base.images import Photo, read_photo, resize
from open_supir.base.images.listing import IMAGE_SUFFIXES
from open_supir.base.images.read import MAX_PIXELS
from open_supir.base.images.write import SUFFIXES, encode_photo
from open_supir.diffusion.samplers import OnStep
from open_supir.inference.options import RestoreOptions
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration

RECORD_VERSION = 1


@dataclass(frozen=True)
class Job:
    """One image: its file, its name within the input, and the files to make of it."""

    source: Path
    name: str
    targets: tuple[Path, ...]

    @property
    def record(self) -> Path:
        """The record, written when all targets are."""
        return self.targets[0].with_name(self.targets[0].name + ".json")


def find_photos(source: Path, output: Path) -> tuple[Path, list[Path], list[str]]:
    """List what to restore, sorted.

    Files with a known suffix are listed whatever they hold; hidden ones and the output folder are
    not. Links to folders are not followed.

    Returns:
        The folder that names are relative to, the files, and one line for each folder that cannot
        be read.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: It holds no images, or is the output folder.
    """
    if source.is_file():
        return source.parent, [source], []
    if not source.is_dir():
        raise FileNotFoundError(f"input={printable(source)}: no such file or folder")
    if source.resolve() == output.resolve():
        raise ValueError(f"output={printable(output)} is the input folder; give another one")
    found, problems = [], []

    def unreadable(error: OSError) -> None:
        problems.append(f"{printable(error.filename)}: {error.strerror}")

    for folder, folders, names in os.walk(source, onerror=unreadable):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != output.resolve()
        ]
        found += [
            here / name
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    if not found and not problems:
        raise ValueError(
            f"input={printable(source)}: no images; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    return source, sorted(found), problems


def plan_jobs(
    paths: Sequence[Path], root: Path, output: Path, options: RestoreOptions
) -> list[Job]:
    """Say where each image goes: the input's tree below `output`.

    Images that differ in suffix only keep it in their names; where names still meet, also on disks
    that know no case, they get a hash. Control characters become underscores.

    Raises:
        ValueError: A target is one of the inputs.
    """
    suffix = SUFFIXES[options.format]

    def targets(name: Path, stem: str) -> tuple[Path, ...]:
        stem = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else "_" for c in stem)
        numbers = ["", *(f"_{n}" for n in range(2, options.num_samples + 1))]
        return tuple(output / name.parent / f"{stem}{number}{suffix}" for number in numbers)

    names = [path.relative_to(root) for path in paths]
    planned = [targets(name, name.stem) for name in names]
    for retry in (lambda name: name.name, _hashed):
        claims: dict[str, int] = {}
        for files in planned:
            for file in files:
                claims[_caseless(file)] = claims.get(_caseless(file), 0) + 1
        planned = [
            targets(name, retry(name)) if any(claims[_caseless(f)] > 1 for f in files) else files
            for name, files in zip(names, planned, strict=True)
        ]
    inputs = {os.path.realpath(path) for path in paths}
    for files in planned:
        for file in files:
            if os.path.realpath(file) in inputs:
                raise ValueError(f"{printable(file)} is an input; give another output folder")
    return [
        Job(path, str(name), files) for path, name, files in zip(paths, names, planned, strict=True)
    ]


def job_key(options: RestoreOptions, model: Mapping[str, str | None]) -> str:
    """Return a hash of all that decides the result besides the image."""
    text = json.dumps([RECORD_VERSION, options.described(), dict(model)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(job: Job, key: str, caption: str | None = None) -> bool:
    """Say whether the record fits input, options and outputs, by their hashes, and the caption,
    where one is given.
    """
    try:
        record = json.loads(job.record.read_bytes())
        outputs = {item["name"]: item["sha256"] for item in record["outputs"]}
        return (
            record["key"] == key
            and caption in (None, record["caption"])
            and record["input"]["sha256"] == sha256_of(job.source)
            and outputs == {file.name: sha256_of(file) for file in job.targets}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def restore_file(
    restorer: Restorer,
    job: Job,
    options: RestoreOptions,
    *,
    output: Path,
    key: str,
    model: Mapping[str, str | None],
    max_pixels: int = MAX_PIXELS,
    max_output_pixels: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Restore one file and write its outputs and record; returns the record.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It is no image, too large, or would be written outside of `output`.
        OSError: An output cannot be written.
    """
    photo = read_photo(job.source, max_pixels=max_pixels)
    height, width = options.output_size(*photo.rgb.shape[-2:])
    if max_output_pixels is not None and height * width > max_output_pixels:
        raise ValueError(f"the result: {width}x{height} pixels, limit {max_output_pixels}")
    folder = job.targets[0].parent
    if not folder.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"{printable(folder)} leads out of the output folder by a link")
    folder.mkdir(parents=True, exist_ok=True)
    result = restorer(photo.rgb, source=job.source, options=options, on_step=on_step)
    inside = describe(result, model) | {
        "input": {"name": job.name, "sha256": sha256_of(job.source)},
        "notes": list(photo.notes),
    }
    outputs = []
    for number, (target, sample) in enumerate(zip(job.targets, result.samples, strict=True)):
        content = encode_result(photo, sample, options, record=inside | {"sample": number})
        write_bytes(target, content)
        outputs.append({"name": target.name, "sha256": hashlib.sha256(content).hexdigest()})
    record = inside | {
        "key": key,
        "outputs": outputs,
        "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        "peak_memory_bytes": _peak_memory(restorer.device),
    }
    write_bytes(job.record, json.dumps(record, indent=1, sort_keys=True).encode())
    return record


def describe(result: Restoration, model: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what made a result, as plain values: the same for every run of the same inputs."""
    return {
        "caption": result.caption,
        "prompt": result.prompt,
        "options": _finite(result.options.described()),
        "given_up": [rung.name for rung in result.given_up],
        "is_exact": result.is_exact,
        "model": dict(model),
        "versions": {
            "open-supir": version("open-supir"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def encode_result(
    photo: Photo, sample: torch.Tensor, options: RestoreOptions, *, record: Mapping[str, Any]
) -> bytes:
    """Encode a restored sample with the alpha, greyness and EXIF of its input."""
    alpha = photo.alpha
    if alpha is not None:
        alpha = resize(alpha, (sample.shape[-2], sample.shape[-1])).clamp(0, 1)
    bits = options.bits or (photo.bits if options.format in ("png", "tiff") else 8)
    restored = replace(photo, rgb=sample, alpha=alpha)
    return encode_photo(
        restored, format=options.format, bits=bits, quality=options.quality, record=record
    )


def printable(path: object) -> str:
    """Return a path or message in one line, control characters and broken bytes escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path)
    )


def _finite(value: Any) -> Any:
    """Replace infinity, which JSON does not know, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if value == math.inf else value


def _hashed(name: Path) -> str:
    return f"{name.name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _caseless(path: Path) -> str:
    return str(path).casefold()


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
