"""Files: written whole or not at all, and told apart by their SHA-256.

A file is written under a hidden name in the same folder, flushed to disk and renamed, so whoever
is killed leaves at most a hidden file, which `remove_leftovers` deletes.
"""

import errno
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(?P<host>.+)\.(?P<pid>\d+)\.tmp")
TRIAL_BYTES = 1 << 20
FOREIGN_AGE_S = 3600.0  # a process of another machine may still be writing a younger file


@contextmanager
def replacing(path: Path, *, fsync: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there replaces `path` at the end.

    On any error the temporary file is deleted and `path` stays as it was. Missing parent folders
    are made. `with replacing(path) as temporary, open(temporary, "wb") as file:` writes a stream.

    Args:
        fsync: Flush content and rename to disk, so that they survive a power failure.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if fsync:
            flush(temporary)
        os.replace(temporary, path)
        if fsync:
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, fsync: bool = True) -> None:
    """Write a file whole or not at all; parent folders are made."""
    with replacing(path, fsync=fsync) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, fsync: bool = True) -> None:
    """Write a UTF-8 text file whole or not at all; parent folders are made."""
    write_bytes(path, text.encode("utf-8"), fsync=fsync)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files, all or none: none gets its name before all are on the disk.

    They get their names in the order given.
    """
    with ExitStack() as stack:
        for path, content in reversed([*contents.items()]):  # the stack unwinds from its end
            temporary = stack.enter_context(replacing(path))
            temporary.write_bytes(content)
            flush(temporary)


def check_writable(folder: Path) -> None:
    """Make the folder of `output` and write to it for a trial, before hours of work are spent.

    Raises:
        OSError: It cannot be made or written to, or there is no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = temporary_name(folder / "trial")
        try:
            trial.write_bytes(bytes(TRIAL_BYTES))
            flush(trial)
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        said = f"output={printable(folder)} cannot be written to: {error.strerror}"
        raise OSError(said) from error


def printable(path: object) -> str:
    """Return a path or message as one line, with control characters and invalid bytes escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path)
    )


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is how some network file systems refuse folders
            raise
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a unique name beside `path`, which says which process uses it."""
    name = f".{secrets.token_hex(8)}.{socket.gethostname()}.{os.getpid()}.tmp"
    return path.with_name(name)  # not made of the path's own name, which may be as long as allowed


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of dead processes in a folder; other hidden files stay."""
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        if match["host"] == socket.gethostname():
            stale = not Path(f"/proc/{match['pid']}").exists()
        else:
            stale = time.time() - path.stat().st_mtime > FOREIGN_AGE_S
        if stale:
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    That of a folder of weights in diffusers' layout is the hash of the list of its files' hashes.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob("*/*") if file.suffix in (".safetensors", ".bin"))
        lines = [f"{sha256_of(file)}  {file.relative_to(path)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
