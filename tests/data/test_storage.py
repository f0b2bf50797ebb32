"""Object storage reads as a local folder does: the same samples, few requests, failures retried."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import open_supir.data.storage as storage_module
from open_supir.data.shards import (
    ShardFolder,
    StoredSample,
    read_manifest,
    write_manifest,
    write_shard,
)
from open_supir.data.storage import RemoteFiles, StorageError, below, is_remote, open_files
from tests.data.made import jpeg, shard_folder
from tests.data.recorder import data_module


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a copy of `tmp_path`/main and /neg in fsspec's memory file system."""
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    shard_folder(tmp_path / "main", [7, 5, 6], prefix="m")
    shard_folder(tmp_path / "neg", [4], prefix="n")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/", recursive=True)
    yield "memory://bucket"
    memory.store.clear()


class Recorder:
    """Stands in for a file system: counts range requests, and fails the first of them."""

    def __init__(self, failures: int = 0) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.failures = failures
        self.read = MemoryFileSystem.cat_file

    def __call__(self, system, path: str, start=None, end=None, **options) -> bytes:
        if start is not None:
            self.ranges.append((start, end))
            if len(self.ranges) <= self.failures:
                raise RuntimeError("503 slow down")  # drivers raise classes of their own
        return self.read(system, path, start=start, end=end, **options)


def test_remote_samples_equal_local_ones(tmp_path: Path, remote: str) -> None:
    near = ShardFolder(tmp_path / "main", read_manifest(tmp_path / "main"))
    far = ShardFolder(f"{remote}/main", read_manifest(f"{remote}/main"))
    far.check_sizes()
    far.check_indexes()
    for shard, entry in enumerate(near.entries):
        for i in range(entry.count):
            assert far.read(shard, i) == near.read(shard, i)


def test_one_sample_is_one_range_request(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: recorder(*a, **k))
    folder = ShardFolder(f"{remote}/main", read_manifest(f"{remote}/main"))
    raw = folder.read(1, 3)
    assert raw.text == b"caption of m001-003" and len(recorder.ranges) == 1
    start, end = recorder.ranges[0]
    assert end - start < len(raw.image) + 4096  # three members and their headers, not the tar


def test_distant_members_are_read_one_by_one(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' tars may hold the members of a sample far apart."""
    recorder = Recorder()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: recorder(*a, **k))
    monkeypatch.setattr("open_supir.data.shards.MAX_GAP", 100)
    folder = ShardFolder(f"{remote}/main", read_manifest(f"{remote}/main"))
    assert folder.read(0, 0).key == "m000-000" and len(recorder.ranges) == 3


@pytest.mark.parametrize("failures", [1, 3])
def test_failed_requests_are_tried_again(
    remote: str, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    recorder = Recorder(failures)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: recorder(*a, **k))
    folder = ShardFolder(f"{remote}/main", read_manifest(f"{remote}/main"))
    assert folder.read(0, 0).key == "m000-000" and len(recorder.ranges) == failures + 1


def test_four_failures_stop_the_run_naming_shard_and_reason(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(99)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: recorder(*a, **k))
    folder = ShardFolder(f"{remote}/main", read_manifest(f"{remote}/main"))
    with pytest.raises(StorageError, match="main/m-000.tar: read failed .503 slow down"):
        folder.read(0, 0)
    assert len(recorder.ranges) == 4


def test_training_from_object_storage_sees_the_same_batches(tmp_path: Path, remote: str) -> None:
    """Through the data module, with two workers that open connections of their own."""
    batches = []
    for root in (tmp_path, remote):
        options = {"workers": 2 if root is remote else 0, "heldout": None, "log_dir": tmp_path}
        data = data_module(Path(tmp_path), **options)
        data.root = root
        data.prepare_data()
        data.setup("fit")
        loader = iter(data.train_dataloader())
        batches.append([next(loader) for _ in range(3)])
        del loader
    for near, far in zip(*batches, strict=True):
        assert near["key"] == far["key"] and near["caption"] == far["caption"]
        assert np.array_equal(near["hq"].numpy(), far["hq"].numpy())


def test_stream_reader_lists_and_reads_remote_tars(tmp_path: Path, remote: str) -> None:
    data = data_module(tmp_path, reader="stream", log_dir=tmp_path)
    data.root = remote
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert all(key[0] in "mn" for key in batch["key"])


def test_missing_remote_data_is_named(remote: str) -> None:
    with pytest.raises(FileNotFoundError, match="no manifest.json in memory://bucket/nowhere"):
        read_manifest(f"{remote}/nowhere")
    entries = read_manifest(f"{remote}/main")
    fsspec.filesystem("memory").rm("/bucket/main/m-001.tar")
    with pytest.raises(StorageError, match="memory://bucket/main/m-001.tar is missing"):
        ShardFolder(f"{remote}/main", entries).check_sizes()
    with pytest.raises(StorageError, match="m-001.tar: cannot open"):
        ShardFolder(f"{remote}/main", entries).read(1, 0)


def test_unknown_address_is_one_clear_error() -> None:
    with pytest.raises(StorageError, match="nonsense://x: no driver"):
        read_manifest("nonsense://x")


def test_connection_is_made_anew_in_another_process(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked workers must not share the sockets and event loops of their parent."""
    files = open_files(f"{remote}/main")
    assert isinstance(files, RemoteFiles)
    files.read("manifest.json")
    first = files._connection
    monkeypatch.setattr(os, "getpid", lambda: -1)
    files.read("manifest.json")
    assert files._connection is not first and files._connection is not None


def test_addresses_and_paths_are_told_apart() -> None:
    assert is_remote("s3://bucket/x") and not is_remote("data/shards") and not is_remote(Path("/x"))
    assert below("s3://bucket/x/", "main") == "s3://bucket/x/main"
    assert below("data", "main") == Path("data/main")


def test_index_of_another_tar_is_found_at_the_start(tmp_path: Path) -> None:
    """Same number of samples, same size of tar, other places: only the tar itself tells."""
    image, small = jpeg(0, 96, 96), jpeg(0, 64, 64)
    for name, images in (("a", [image, small]), ("b", [small, image])):
        samples = [
            StoredSample(key=f"{name}{i}", image=data, caption="c") for i, data in enumerate(images)
        ]
        entry = write_shard(tmp_path / f"{name}.tar", samples)
        write_manifest(tmp_path, [entry])
    os.replace(tmp_path / "a.index.npy", tmp_path / "b.index.npy")
    folder = ShardFolder(tmp_path, read_manifest(tmp_path))
    folder.check_sizes()
    with pytest.raises(StorageError, match="b.tar: sample 'a1' is not where the index says"):
        folder.check_indexes()
