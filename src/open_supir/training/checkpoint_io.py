"""Verified checkpoints: streamed, flushed, renamed, and sealed with a manifest.

Next to `step_0001000.ckpt` is `step_0001000.ckpt.json` with its size and sha256. The manifest is
written last, so a checkpoint without one was never finished, and a checkpoint that does not match
its manifest is damaged. Neither torch.load nor safetensors notices a flipped bit.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from open_supir.base.files import flush, remove_leftovers, replacing, sha256_of, write_text

MANIFEST_VERSION = 1
SPARE_BYTES = 64 << 20  # free disk space beyond two checkpoints, for logs and pictures


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, with a manifest.

    Lightning's own writer holds the file in memory, stages it in the system's temporary folder and
    moves it across file systems, which is not atomic. This one streams to a temporary name next to
    the target, flushes it to disk, renames it, and writes the manifest last.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, then its manifest.

        Raises:
            OSError: The disk is too full or the folder is not writable; nothing is left behind.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        needed = 2 * tensor_bytes(checkpoint) + SPARE_BYTES
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise OSError(
                f"{target}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed (twice the "
                "checkpoint). Free some space, then resume with ckpt_path=last"
            )
        with replacing(target) as temporary:
            with open(temporary, "wb") as file:
                hashing = _HashingWriter(file)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]  # needs write and flush only
                size = file.tell()
            flush(temporary)
            # The manifest of an older file of this name must not outlive it.
            manifest_path(target).unlink(missing_ok=True)
        recipe = checkpoint.get("recipe", {})
        manifest = {
            "version": MANIFEST_VERSION,
            "file": target.name,
            "size": size,
            "sha256": hashing.sha256.hexdigest(),
            "step": int(checkpoint.get("global_step", 0)),
            "saved_at": time.time(),
            "commit": recipe.get("commit"),
            "recipe_sha256": hashlib.sha256(
                json.dumps(recipe, sort_keys=True, default=str).encode()
            ).hexdigest(),
            "torch": torch.__version__,
        }
        write_text(manifest_path(target), json.dumps(manifest, indent=2) + "\n")

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data; nothing in it is ever executed.

        The caller is responsible for verifying it; see `verify`.
        """
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete a checkpoint's manifest, then the checkpoint."""
        manifest_path(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def manifest_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's manifest."""
    return checkpoint.with_name(checkpoint.name + ".json")


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """Return a checkpoint's manifest, or None if it is missing or damaged."""
    try:
        manifest = json.loads(manifest_path(checkpoint).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "sha256" in manifest else None


def verify(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its manifest; returns what is wrong, or None.

    Reads the whole file.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return "no manifest, so it was never finished"
    if not checkpoint.is_file():
        return "the file is missing"
    size = checkpoint.stat().st_size
    if size != manifest["size"]:
        return f"{size} bytes in place of {manifest['size']}"
    found = sha256_of(checkpoint)
    if found != manifest["sha256"]:
        return f"sha256 {found[:12]} in place of {manifest['sha256'][:12]}"
    return None


def committed(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that have a manifest, newest first."""
    found = []
    for path in folder.glob("*.ckpt"):
        manifest = None if path.is_symlink() else read_manifest(path)
        if manifest is not None:
            found.append((manifest["saved_at"], path))
    return [path for _, path in sorted(found, reverse=True)]


def tensor_bytes(content: Any) -> int:
    """Return the total bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(tensor_bytes(value) for value in content.values())
    if isinstance(content, list | tuple):
        return sum(tensor_bytes(value) for value in content)
    return 0


class _HashingWriter:
    """Hashes a file while writing it, so that the checkpoint need not be read back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()
