"""SHA-256 of weight files, cached: hashing 7 GB takes longer than reading the parts in use.

A file that changes without a change of its size or time is not noticed; loading checks values, and
checkpoints have fingerprints of their frozen parts.
"""

import json
import logging
from pathlib import Path

from open_supir.base.files import sha256_of, write_text

log = logging.getLogger(__name__)

LARGE = 64 << 20  # bytes; smaller files are hashed each time
STORE = Path("~/.cache/open-supir/sha256.json")


def weights_sha256(path: Path, *, store: Path = STORE, large: int = LARGE) -> str:
    """Return the SHA-256 of a weight file, or of a folder as `sha256_of` does.

    That of a large file is kept in `store`, by path, size and time of its last change.
    """
    if path.is_dir():
        return sha256_of(path)
    file = path.resolve()
    state = file.stat()
    if state.st_size < large:
        return sha256_of(file)
    place, key = store.expanduser(), f"{file} {state.st_size} {state.st_mtime_ns}"
    known = _read(place)
    if key not in known:
        known[key] = sha256_of(file)
        kept = {k: v for k, v in known.items() if k == key or not k.startswith(f"{file} ")}
        try:
            write_text(place, json.dumps(kept, indent=1))
        except OSError as error:  # a home that cannot be written to costs time, not the run
            log.debug("%s: %s", place, error)
    return known[key]


def _read(place: Path) -> dict[str, str]:
    try:
        return dict(json.loads(place.read_text()))
    except (OSError, ValueError):
        return {}
