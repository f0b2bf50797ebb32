"""Storage of shards: a local folder, read by `os.pread`, or object storage, by range requests.

Object storage is any fsspec address (`s3://bucket/data`, `gs://...`, `https://...`) whose driver is
installed. Failed reads are retried.
"""

import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

RETRY_SECONDS = (0.5, 2.0, 8.0)
MAX_OPEN = 128
T = TypeVar("T")


class StorageError(OSError):
    """The storage failed, not just one sample; stops the run."""

    def __str__(self) -> str:
        """Return the message in one line, without the traceback that a DataLoader prepends."""
        text = super().__str__()
        if "Traceback (most recent call last)" in text:
            text = re.split(r"^[\w.]*StorageError: ", text, flags=re.M)[-1]
        return " ".join(text.split())


class Files(Protocol):
    """Read-only files of one folder; copies in other processes open their own connections."""

    per_request: bool  # whether each read is a request, so that one large read beats three small

    def read(self, name: str) -> bytes:
        """Read a whole file; FileNotFoundError if it does not exist."""
        ...

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes; StorageError after retries."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file in the folder, by name."""
        ...

    def close(self) -> None:
        """Close all open files and connections."""
        ...


def is_remote(place: str | Path) -> bool:
    """Whether a folder is an fsspec address."""
    return "://" in str(place)


def below(root: str | Path, name: str) -> str | Path:
    """Return the folder `name` in `root`; remote addresses stay strings."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else Path(root) / name


def open_files(folder: str | Path) -> Files:
    """Open a local folder or an fsspec address."""
    return RemoteFiles(str(folder)) if is_remote(folder) else LocalFiles(Path(folder))


class LocalFiles:
    """A local or mounted folder; keeps at most `max_open` files open."""

    per_request = False

    def __init__(self, folder: Path, *, max_open: int = MAX_OPEN) -> None:
        self.folder, self.max_open = folder, max_open
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        where = str(self.folder / name)
        return exactly(lambda: os.pread(self._descriptor(name), size, offset), where, offset, size)

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        fd = os.open(self.folder / name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._open[name] = fd
        if len(self._open) > self.max_open:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def sizes(self) -> dict[str, int]:
        with os.scandir(self.folder) as found:
            return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class RemoteFiles:
    """A folder in object storage, read through fsspec; every read is one request."""

    per_request = True

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._connection: tuple[int, Any, str] | None = None

    def _connect(self) -> tuple[Any, str]:
        """Return the file system and the folder's path; each process has its own connection."""
        if self._connection is None or self._connection[0] != os.getpid():
            try:
                import fsspec  # only for object storage

                system, path = fsspec.core.url_to_fs(self.address)
            except (ImportError, ValueError) as error:
                raise StorageError(
                    f"{self.address}: no driver for this address is installed ({error})"
                ) from error
            self._connection = (os.getpid(), system, path)
        return self._connection[1:]

    def read(self, name: str) -> bytes:
        system, path = self._connect()
        return again(lambda: system.cat_file(f"{path}/{name}"), f"{self.address}/{name}")

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        system, path = self._connect()
        where = f"{self.address}/{name}"
        return exactly(
            lambda: system.cat_file(f"{path}/{name}", start=offset, end=offset + size),
            where, offset, size,
        )  # fmt: skip

    def sizes(self) -> dict[str, int]:
        system, path = self._connect()
        listing = again(lambda: system.ls(path, detail=True), self.address)
        return {
            entry["name"].rstrip("/").rsplit("/", 1)[-1]: size
            for entry in listing
            if (size := entry.get("size")) is not None or (size := system.size(entry["name"]))
        }

    def close(self) -> None:
        self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}


def exactly(read: Callable[[], bytes], where: str, offset: int, size: int) -> bytes:
    """Read until exactly `size` bytes arrive, in at most four attempts."""

    def attempt() -> bytes:
        data = read()
        if len(data) != size:
            raise OSError(f"{len(data)} of {size} bytes at byte {offset}")
        return data

    return again(attempt, where)


def again(action: Callable[[], T], where: str) -> T:
    """Run `action` and retry it after a pause if it fails, but not if a file is missing.

    Raises:
        FileNotFoundError: The file does not exist.
        StorageError: Every attempt failed.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:  # object storage drivers raise their own exception classes
            if wait is None:
                raise StorageError(f"{where}: read failed ({error})") from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
