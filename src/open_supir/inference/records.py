"""Records: how each restored image was made, and whether it is already done.

Each restored image has a record beside it, NAME.json, that lists the input, the outputs and all
that determined them, with hashes. An image is done if its record matches.
"""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from open_supir.base.files import printable, sha256_of, write_together
from open_supir.base.images import Photo, read_photo, resize
from open_supir.base.images.read import MAX_PIXELS
from open_supir.base.images.write import MAX_SIDES, encode_photo, left_out
from open_supir.base.results import claim, refuse_foreign
from open_supir.diffusion.samplers import OnStep
from open_supir.inference.disagreement import encode_map
from open_supir.inference.folder import Job
from open_supir.inference.options import RestoreOptions
from open_supir.inference.pixels import resized
from open_supir.inference.region import read_mask
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration
from open_supir.inference.sidecars import copied_sidecars

RECORD_VERSION = 1


def job_key(options: RestoreOptions, model: Mapping[str, Any]) -> str:
    """Return a hash of everything except the image that determines the result."""
    text = json.dumps([RECORD_VERSION, options.described(), dict(model)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_done(job: Job, key: str, caption: str | None = None) -> bool:
    """Return whether the record matches the hashes of input, mask, options and outputs.

    If a caption is given, it must match too.
    """
    try:
        record = json.loads(job.record.read_bytes())
        outputs = {item["name"]: item["sha256"] for item in record["outputs"]}
        return (
            record["key"] == key
            and caption in (None, record["caption"])
            and record.get("mask") == (job.mask and sha256_of(job.mask))
            and record["input"]["sha256"] == sha256_of(job.source)
            and outputs == {file.name: sha256_of(file) for file in job.targets}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def restore_file(
    restorer: Restorer,
    job: Job,
    on_step: OnStep | None = None,
    *,
    output: Path,
    key: str,
    model: Mapping[str, Any],
    max_pixels: int = MAX_PIXELS,
    max_output_pixels: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Restore one file with the restorer's options, write outputs and record, return the record.

    Args:
        output: Output folder; nothing may be written outside it.
        key: See `job_key`.
        model: See `Model.described`.
        max_pixels: Larger inputs are rejected before decoding.
        max_output_pixels: Larger results are rejected before restoring; None allows any.
        overwrite: Replace files that are not ours, too.

    Raises:
        FileNotFoundError: The input does not exist.
        FileExistsError: A file that is not ours stands where one would be written.
        ValueError: It is not an image, is too large, or would be written outside `output`.
        FloatingPointError: The networks overflowed.
        OSError: An output cannot be written.
    """
    options = restorer.options
    photo = read_photo(job.source, max_pixels=max_pixels, intent=options.intent)
    size = (photo.rgb.shape[-2], photo.rgb.shape[-1])
    check_result(size, options, max_output_pixels)
    _make_folder(job.targets[0].parent, output)
    claimed(job, overwrite=overwrite)
    if restorer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(restorer.device)
    mask = job.mask and read_mask(job.mask, size)
    result = restorer(photo.visible, source=job.source, mask=mask, on_step=on_step)
    inside = describe(result, model) | {
        "mask": job.mask and sha256_of(job.mask),
        "input": {"name": job.name, "sha256": sha256_of(job.source)},
        "notes": [*photo.notes, *enlarged(size, options), *left_out(photo, options.format)],
    }
    contents = encode_all(photo, result, job.targets, record=inside)
    earlier = claimed(job, overwrite=overwrite)
    beside, notes = _sidecars(photo, result, job, earlier)
    record = inside | {
        "key": key,
        "outputs": _listed(contents),
        "sidecars": _listed(beside),
        "earlier": earlier,
        "notes": [*inside["notes"], *notes],
        "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        "peak_memory_bytes": _peak_memory(restorer.device),
    }
    text = json.dumps(record, indent=1, sort_keys=True)
    write_together({job.record: text.encode(), **contents, **beside})  # record first: see `claim`
    return record


def enlarged(size: tuple[int, int], options: RestoreOptions) -> list[str]:
    """Return a note for an input of this (H, W) if it is restored at another size than it gets."""
    working, own = options.working_size(*size), options.output_size(*size)
    if working == own:
        return []
    large, small = (f"{width} x {height}" for height, width in (working, own))
    return [f"small: restored at {large}, then reduced to {small} (min_size)"]


def _make_folder(folder: Path, output: Path) -> None:
    if not folder.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"{printable(folder)} leads outside the output folder through a link")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{printable(folder)} may not be written to")


def _listed(contents: Mapping[Path, bytes]) -> list[dict[str, str]]:
    return [
        {"name": path.name, "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in contents.items()
    ]


def _sidecars(
    photo: Photo, result: Restoration, job: Job, ours: Sequence[Mapping[str, str]]
) -> tuple[dict[Path, bytes], list[str]]:
    size = (result.restored.shape[-2], result.restored.shape[-1])
    is_srgb = photo.own is None or result.options.profile == "srgb"
    files = {job.record.parent / item["name"] for item in ours}
    return copied_sidecars(job.source, job.targets[0], size, is_srgb=is_srgb, ours=files)


def claimed(job: Job, *, overwrite: bool) -> list[dict[str, str]]:
    """Return which of the files that a job's record names are ours.

    Raises:
        FileExistsError: A file that is not ours stands where one would be written, or a folder.
    """
    ours = claim(job.record, overwrite=overwrite)
    files = {job.record.parent / item["name"] for item in ours}
    for target in job.targets:
        if not overwrite or target.is_dir():
            refuse_foreign(target, files)
    return ours


def check_result(size: tuple[int, int], options: RestoreOptions, max_pixels: int | None) -> None:
    """Refuse the result of an input of this (H, W) if it would be too large, before it is made.

    Raises:
        ValueError: It has more than `max_pixels` pixels, or a side that its format cannot hold.
    """
    height, width = options.output_size(*size)
    if max_pixels is not None and height * width > max_pixels:
        raise ValueError(
            f"result too large: {width}x{height} pixels, limit {max_pixels}; "
            f"set max_output_pixels={height * width} or more"
        )
    side = MAX_SIDES.get(options.format)
    if side is not None and max(height, width) > side:
        raise ValueError(
            f"result too large for {options.format}: {width}x{height} pixels, limit {side} a side; "
            "use options.format=png or tiff"
        )


def describe(result: Restoration, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a result was made, as plain values; identical for identical inputs."""
    levels = result.disagreement
    return {
        "caption": result.caption,
        "disagreement": None if levels is None else round(float(levels.mean()), 3),
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


def encode_all(
    photo: Photo, result: Restoration, targets: Sequence[Path], *, record: Mapping[str, Any]
) -> dict[Path, bytes]:
    """Encode a restoration's results by file, in the order of `Job.targets`."""
    options = result.options
    pictures: dict[int | str, torch.Tensor] = dict(enumerate(result.samples))
    if options.average:
        pictures["average"] = result.average
    contents = {
        target: encode_result(photo, picture, options, record={**record, "sample": name})
        for target, (name, picture) in zip(targets[: len(pictures)], pictures.items(), strict=True)
    }
    if result.disagreement is not None:
        contents[targets[-1]] = encode_map(result.disagreement)
    return contents


def encode_result(
    photo: Photo, sample: torch.Tensor, options: RestoreOptions, *, record: Mapping[str, Any]
) -> bytes:
    """Encode a restored sample with the alpha channel, greyness and metadata of its input.

    What is wholly transparent keeps the colour that it has in the input.
    """
    alpha, size = photo.alpha, (sample.shape[-2], sample.shape[-1])
    if alpha is not None:
        alpha = resize(alpha, size).clamp(0, 1)
        hidden = resized(photo.rgb[None], size)[0].to(sample)
        sample = torch.where(alpha.to(sample) > 0, sample, hidden)
    bits = options.bits or (photo.bits if options.format in ("png", "tiff") else 8)
    is_grey = photo.is_grey or (options.grey == "auto" and photo.looks_grey())
    own = photo.own if options.profile == "keep" else None
    restored = replace(photo, rgb=sample, alpha=alpha, is_grey=is_grey, own=own)
    return encode_photo(
        restored, format=options.format, bits=bits, quality=options.quality, record=record
    )


def _finite(value: Any) -> Any:
    """Replace infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if value == math.inf else value


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
