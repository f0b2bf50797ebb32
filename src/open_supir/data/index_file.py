"""Index files, `NAME.index.npy` next to `NAME.tar`: read whole or by row, never unpickled."""

import functools
import io
from collections.abc import Callable

import numpy as np

from open_supir.data.storage import Files, StorageError

INDEX_SUFFIX = ".index.npy"
NPY_START = 10  # bytes before the header of an .npy file: magic, version, length


def read_index(files: Files, tar: str, count: int) -> np.ndarray:
    """Read the whole index of the file `tar`, which must have `count` rows.

    Raises:
        StorageError: The index is missing, unreadable or of another length.
    """
    name = tar.removesuffix(".tar") + INDEX_SUFFIX
    try:
        rows = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(name, error) from error
    _check_rows(name, rows.dtype, rows.shape, count)
    return rows


def open_index(files: Files, tar: str, count: int) -> Callable[[int], np.void]:
    """Return a reader of single rows; processes share the cached pages of a local index.

    Raises:
        StorageError: The index is missing or unreadable, or does not have `count` rows.
    """
    if files.per_request:
        return read_index(files, tar, count).__getitem__
    name = tar.removesuffix(".tar") + INDEX_SUFFIX
    try:
        start = files.read_at(name, 0, NPY_START)
        length = NPY_START + int.from_bytes(start[8:], "little")
        dtype, shape = _npy_layout(files.read_at(name, 0, length))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    _check_rows(name, dtype, shape, count)

    def row(sample: int) -> np.void:
        data = files.read_at(name, length + sample * dtype.itemsize, dtype.itemsize)
        return np.frombuffer(data, dtype)[0]

    return row


@functools.lru_cache(16)
def _npy_layout(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """Read the header of an .npy file of version 1; the indexes of a folder mostly share one."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an .npy file of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, shape


def _check_rows(name: str, dtype: np.dtype, shape: tuple[int, ...], count: int) -> None:
    if dtype.hasobject or "image_offset" not in (dtype.names or ()) or shape != (count,):
        raise StorageError(f"{name}: rows of shape {shape}, but the manifest says {count} samples")


def _unreadable(name: str, error: Exception) -> StorageError:
    hint = "python -m src.check builds missing indexes"
    return StorageError(f"{name}: cannot read the index ({error}); {hint}")
