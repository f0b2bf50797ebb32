"""Read `.ckpt`-like files without running their code.

Official SUPIR files and training checkpoints are pickles. They are opened with torch's restricted
unpickler, which builds tensors and plain containers only.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OURS = "open-supir"  # `format` of our training checkpoints


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a checkpoint, memory-mapped, and its metadata.

    Nested `state_dict`s are found. Our own training checkpoints give their averaged weights if they
    have any, else the raw ones; `metadata["weights"]` says which.

    Raises:
        ValueError: The file is truncated, not a checkpoint, without tensors, or would run code.
    """
    content = _load(path)
    metadata = {}
    if isinstance(content, dict) and content.get("format") == OURS:
        averaged = bool(content.get("ema"))
        metadata = {"layout": "native", "weights": "averaged" if averaged else "raw"}
        metadata["step"] = str(content.get("global_step", "unknown"))
        if "recipe" in content:
            metadata["recipe"] = json.dumps(content["recipe"])
        if averaged:
            return _tensors(path, content["ema"]), metadata
    for name in ("state_dict", "model_state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    return _tensors(path, content), metadata


def what_else(start: bytes) -> str:
    """Say why a file is not a weight file, if its first bytes show it; else return ""."""
    text = start.lstrip().lower()
    if b"git-lfs" in text:
        return ": this is a Git LFS pointer, the file itself was not downloaded"
    if text.startswith((b"<!doctype", b"<html")):
        return ": this is a web page, probably an error page saved by a download"
    if text.startswith(b"pk"):
        return ": this is a torch checkpoint or zip archive with a wrong suffix"
    return ""


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(72)
    zipped = start.startswith(b"PK")
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: truncated (no archive directory at its end, {path.stat().st_size:,} bytes); "
            "download it again"
        )
    if not zipped and not start.startswith(b"\x80"):
        raise ValueError(f"{path}: not a torch checkpoint{what_else(start)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].split("\n")
        wants = next(
            (line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), ""
        )
        raise ValueError(
            f"{path}: refused, since loading it would run its code ({wants or reason[0]}). Use a "
            ".safetensors release of the same weights or, if you trust its source, save it again "
            "in an isolated environment: torch.save({'state_dict': tensors}, path)"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a torch checkpoint: {error}") from error


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path}: expected a dictionary of tensors, got {kind}")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path}: no tensors in this checkpoint; its keys are "
            f"{', '.join(map(str, list(content)[:8]))}"
        )
    return tensors
