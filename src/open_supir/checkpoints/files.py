"""Weight files as lazily read mappings from stored names to tensors.

`.safetensors` files are read tensor by tensor; `.ckpt`, `.pt`, `.pth` and `.bin` files are pickles,
opened with `weights_only=True` and memory-mapped; a diffusers folder is the union of its parts'
files, with names prefixed by `folder/`. Opening reads headers only, so names, shapes and dtypes
cost almost nothing.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_supir.base.places import located
from open_supir.checkpoints.diffusers_names import FOLDERS
from open_supir.checkpoints.pickles import read_pickle, what_else

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
REMAP_BYTES = 128 << 20

# Full precision before half, one file before many, safetensors before pickles.
_WEIGHT_FILES = tuple(
    f"{stem}{suffix}"
    for kind in (".safetensors", ".bin")
    for suffix in (kind, f"{kind}.index.json", f".fp16{kind}", f"{kind}.index.fp16.json")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)

_SOURCES = {
    "weights.sdxl": "SDXL base with the 0.9 VAE: sd_xl_base_1.0_0.9vae.safetensors (6.9 GB) of "
    "huggingface.co/stabilityai/stable-diffusion-xl-base-1.0, or a fine-tune of it "
    "(at tiny scale the prior that ships with the code; `make demo-prior` rebuilds it)",
    "weights.supir": "SUPIR-v0Q.ckpt or SUPIR-v0F.ckpt (5.3 GB), linked from "
    "github.com/Fanghua-Yu/SUPIR",
    "weights.robust_encoder": "a checkpoint of experiment=robust_encoder, or a SUPIR file",
    "weights.vae": "an SDXL VAE alone, such as sdxl_vae.safetensors of "
    "huggingface.co/stabilityai/sdxl-vae",
}


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor, as its header gives them."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint(Mapping[str, Tensor]):
    """Stored names -> tensors, read on access; `spec` reads no tensor."""

    path: Path
    metadata: dict[str, str]
    specs: dict[str, TensorSpec]

    def spec(self, key: str) -> TensorSpec:
        """Return shape and dtype of a tensor without reading it."""
        return self.specs[key]

    def release(self) -> None:
        """Release the file's pages that only this object holds; later reads map them again."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, key: object) -> bool:
        return key in self.specs


class SafetensorsFile(Checkpoint):
    """One `.safetensors` file; tensors are views of the mapped file, so none is copied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specs, self.metadata = read_safetensors_header(path)
        self._handle: Any = None
        self._bytes_read = 0

    def __getitem__(self, key: str) -> Tensor:
        spec = self.specs[key]
        # Remapping now and then releases the pages of tensors that were converted and dropped.
        if self._bytes_read > REMAP_BYTES:
            self.release()
        if self._handle is None:
            self._handle = _open_safetensors(self.path)
        self._bytes_read += spec.dtype.itemsize * max(1, math.prod(spec.shape))
        return self._handle.get_tensor(key)

    def release(self) -> None:
        """Unmap what no tensor holds."""
        self._handle, self._bytes_read = None, 0


class PickledFile(Checkpoint):
    """One `.ckpt`-like file; tensors are memory-mapped. See `read_pickle` for what is accepted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors, self.metadata = read_pickle(path)
        self._can_remap = zipfile.is_zipfile(path)
        self._bytes_read = 0
        self.specs = {
            key: TensorSpec(tuple(tensor.shape), tensor.dtype)
            for key, tensor in self._tensors.items()
        }

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        self._bytes_read += tensor.nbytes
        if self._bytes_read > REMAP_BYTES:
            self.release()
        return tensor

    def release(self) -> None:
        """Replace the mapping by a fresh one, with no page loaded."""
        if self._can_remap and self._bytes_read:
            self._tensors, self._bytes_read = read_pickle(self.path)[0], 0


class Folder(Checkpoint):
    """A diffusers folder, or one component of it; keys are `part folder/stored name`."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        """Open the weight files, or indexes of weight files, of some part folders."""
        self.path, self.metadata = path, {}
        self._files: dict[str, tuple[Checkpoint, str]] = {}
        for folder, file in files.items():
            self._add(folder, file)
        self.specs = {key: file.spec(name) for key, (file, name) in self._files.items()}

    def _add(self, folder: str, found: Path) -> None:
        for shard, names in _shards(found).items():
            checkpoint = _open_file(shard)
            lost = [name for name in names or () if name not in checkpoint]
            if lost:
                raise ValueError(
                    f"{shard}: lacks {len(lost)} tensors that {found.name} lists, first: {lost[0]}"
                )
            self.metadata |= checkpoint.metadata
            for name in names or checkpoint:
                self._files[f"{folder}/{name}"] = (checkpoint, name)

    def __getitem__(self, key: str) -> Tensor:
        file, name = self._files[key]
        return file[name]

    def release(self) -> None:
        """Release every file."""
        for file in {id(file): file for file, _ in self._files.values()}.values():
            file.release()


def open_checkpoint(path: str | Path, *, key: str = "") -> Checkpoint:
    """Open a weight file or a diffusers folder; reads headers only.

    Args:
        path: `.safetensors`, `.ckpt`, `.pt`, `.pth`, `.bin`, or a folder with `unet/`, `vae/` and
            so on, or one of these folders.
        key: The setting that names this file, such as `weights.sdxl`; error messages mention it.

    Raises:
        FileNotFoundError: There is no such file; the message says where to get it.
        ValueError: The file is truncated, is not a weight file, or is a pickle that would run code.
    """
    path = located(path)
    if not path.exists():
        setting = f" (setting {key})" if key else ""
        source = f". Expected {_SOURCES[key]}" if key in _SOURCES else ""
        raise FileNotFoundError(f"{path}: no such file or folder{setting}{source}")
    if path.is_dir():
        return _open_folder(path)
    checkpoint = _open_file(path)
    component = _component(checkpoint)
    return Folder(path, {component: path}) if component else checkpoint


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickledFile(path)
    raise ValueError(
        f"{path}: weights are read from .safetensors, {', '.join(PICKLES)} or a diffusers folder, "
        f"got a file ending in {path.suffix or 'nothing'}"
    )


def _open_folder(path: Path) -> Checkpoint:
    """Open a folder of part folders, or one component's own folder."""
    folders = [folder for folder in FOLDERS if (path / folder).is_dir()]
    files = {folder: _weight_file(path / folder) for folder in folders}
    for folder, file in files.items():
        if file is None:
            raise ValueError(
                f"{path / folder}: no weight file; expected one of {', '.join(_WEIGHT_FILES)}"
            )
    lone = None if files else _weight_file(path)
    if lone is not None:
        names = [name for shard in _shards(lone) for name in _open_file(shard)]
        files = {_component(names): lone} if _component(names) else {}
    if not files:
        raise ValueError(
            f"{path}: no weights found in this folder; a diffusers folder holds "
            f"{', '.join(FOLDERS)} with files such as {_WEIGHT_FILES[0]}"
        )
    return Folder(path, {folder: file for folder, file in files.items() if file is not None})


def _weight_file(folder: Path) -> Path | None:
    candidates = [folder / name for name in _WEIGHT_FILES]
    return next((file for file in candidates if file.is_file()), None)


def _component(names: Iterable[str]) -> str:
    """Return the part folder of diffusers that has such names; empty for other layouts."""
    names = set(names)
    if "decoder.conv_in.weight" in names and any(".down_blocks." in name for name in names):
        return "vae"
    if {"conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight"} <= names:
        return "unet"
    return ""


def read_safetensors_header(path: Path) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Return the tensors' specs and the metadata of a `.safetensors` file, checking its length.

    Raises:
        ValueError: The file is not safetensors, or its length contradicts its header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"{path}: not a safetensors file{what_else(start + file.read(64))}")
        raw = file.read(length)
    if len(raw) < length:
        raise ValueError(
            f"{path}: truncated, its header alone needs {8 + length:,} bytes, got {size:,}"
        )
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        specs = {
            key: TensorSpec(tuple(entry["shape"]), SAFETENSORS_DTYPES[entry["dtype"]])
            for key, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a safetensors file, its header cannot be read: {error}"
        ) from error
    if size != 8 + length + end:
        state = "truncated" if size < 8 + length + end else "too long"
        raise ValueError(
            f"{path}: {state}, its header declares {8 + length + end:,} bytes, got {size:,}; "
            "download it again"
        )
    return specs, metadata


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error


def _shards(file: Path) -> dict[Path, list[str] | None]:
    """Return the files of a folder's tensors with the names in each; None means all in the file."""
    if file.suffix != ".json":
        return {file: None}
    try:
        names = json.loads(file.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not an index of weight files: {error!r}") from error
    shards: dict[Path, list[str] | None] = {}
    for name, shard in names.items():
        if Path(shard).name != shard:
            raise ValueError(f"{file}: weight files must be in the index's folder, got {shard!r}")
        held = shards.setdefault(file.parent / shard, [])
        assert held is not None
        held.append(name)
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(
                f"{shard}: no such file, but {file.name} lists it; download it too"
            )
    return shards
