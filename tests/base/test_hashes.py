"""Remembered hashes: equal to fresh ones, and fresh again after any change of the file."""

import hashlib
import os
from pathlib import Path

import pytest

from open_supir.base import hashes
from open_supir.base.hashes import weights_sha256


def test_a_large_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store, hashed = tmp_path / "w", tmp_path / "home" / "sha256.json", []
    real = hashes.sha256_of
    monkeypatch.setattr(hashes, "sha256_of", lambda path: hashed.append(path) or real(path))

    def found() -> str:
        return weights_sha256(file, store=store, large=4)

    file.write_bytes(b"first")
    assert found() == found() == hashlib.sha256(b"first").hexdigest() and len(hashed) == 1
    file.write_bytes(b"other")
    os.utime(file, ns=(1, 1))
    assert found() == hashlib.sha256(b"other").hexdigest() and len(hashed) == 2
    assert store.read_text().count("\n") == 2  # the older entry is gone
    store.write_text("{")
    assert found() == hashlib.sha256(b"other").hexdigest()
    file.write_bytes(b"abc")
    found(), found()
    assert len(hashed) == 5  # small files are hashed each time


def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    (tmp_path / "w").write_bytes(b"first")
    found = weights_sha256(tmp_path / "w", store=tmp_path / "home" / "x.json", large=1)
    assert found == hashlib.sha256(b"first").hexdigest()
