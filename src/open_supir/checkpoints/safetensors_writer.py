"""Write `.safetensors` files tensor by tensor, atomically.

The safetensors library wants all tensors at once; here each is asked for, written and let go, so
converting a file costs the memory of its largest tensor. The format: 8 bytes of header length, a
JSON header, the tensors' bytes.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from open_supir.checkpoints.files import DTYPES, TensorSpec

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, tuple[TensorSpec, Callable[[], Tensor]]],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors under their names; the file appears at `path` complete or not at all.

    Args:
        path: Target; an existing file is replaced.
        tensors: By name, shape and dtype in the file, and a function that returns the tensor.
        metadata: The file's words about itself; `format: pt` is there unless given.

    Raises:
        ValueError: A metadata value is no string, or a dtype has no name in the format.
    """
    wrong = [key for key, value in metadata.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"metadata values must be strings, {wrong[0]!r} is {metadata[wrong[0]]!r}")
    # wide types first keeps every tensor aligned, as the library does
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        shape, dtype = tensors[name][0]
        if dtype not in _NAMES:
            raise ValueError(f"{name}: {dtype} has no place in a safetensors file")
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replace_atomically(Path(path)) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            (shape, dtype), read = tensors[name]
            tensor = read().detach().to(device="cpu", dtype=dtype).contiguous()
            assert tuple(tensor.shape) == tuple(shape), (name, tensor.shape, shape)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it is flushed to disk and renamed, on failure
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # temporary files are private; weights are as any file
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
