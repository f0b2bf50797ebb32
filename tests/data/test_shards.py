"""Shards: written whole or not at all, read back exactly, described truthfully."""

import hashlib
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

import open_supir.data.storage as storage_module
from open_supir.data.index import index_tar
from open_supir.data.shards import (
    ShardFolder,
    StorageError,
    StoredSample,
    image_suffix,
    index_path,
    load_index,
    read_manifest,
    write_shard,
    write_shards,
)
from tests.data.made import encoded, jpeg, pixels, shard_folder, stored


def test_shards_read_back_exactly(tmp_path: Path) -> None:
    from PIL import Image

    samples = [
        StoredSample(
            key="a", image=jpeg(1), caption="caf\u00e9", meta={"source": "x", "n": [1, 2]}
        ),
        StoredSample(key="b", image=encoded(Image.fromarray(pixels(2)), "PNG"), caption=""),
        StoredSample(key="c-_9", image=encoded(Image.fromarray(pixels(3)), "WEBP"), caption="c"),
    ]
    entries = write_shards(tmp_path, samples, prefix="t", shard_size=2)
    folder = ShardFolder(tmp_path, read_manifest(tmp_path))
    assert [(e.name, e.count) for e in entries] == [("t-000000.tar", 2), ("t-000001.tar", 1)]
    for number, sample in enumerate(samples):
        raw = folder.read(number // 2, number % 2)
        assert (raw.key, raw.image) == (sample.key, sample.image)
        assert raw.text is not None and raw.text.decode() == sample.caption
        assert raw.meta is not None and json.loads(raw.meta) == sample.meta
        assert folder.key(number // 2, number % 2) == sample.key


def test_shards_are_plain_webdataset_tars(tmp_path: Path) -> None:
    """Anybody's tar and webdataset read them."""
    write_shard(tmp_path / "s.tar", [stored("k1"), stored("k2")])
    with tarfile.open(tmp_path / "s.tar", "r:") as tar:
        names = tar.getnames()
        assert all(member.isreg() for member in tar)
    assert sorted(names) == ["k1.jpg", "k1.json", "k1.txt", "k2.jpg", "k2.json", "k2.txt"]


def test_manifest_tells_size_hash_and_statistics(tmp_path: Path) -> None:
    samples = [stored("a", scores={"sharp": 0.25}), stored("b", scores={"sharp": 0.75})]
    entry = write_shard(tmp_path / "s.tar", samples)
    data = (tmp_path / "s.tar").read_bytes()
    assert (entry.count, entry.bytes) == (2, len(data))
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert entry.statistics["scores"] == {"sharp": {"min": 0.25, "mean": 0.5}}
    assert entry.statistics["caption_words"] == {"0": 2}
    assert entry.statistics["image_bytes"]["max"] == len(jpeg())


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.tar", [stored("k")])
    second = write_shard(tmp_path / "b.tar", [stored("k")])
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    "sample",
    [
        StoredSample(key="../up", image=jpeg(), caption=""),
        StoredSample(key="a.b", image=jpeg(), caption=""),
        StoredSample(key="k", image=b"<html>", caption=""),
        StoredSample(key="k", image=jpeg(), caption="x" * (17 << 10)),
        StoredSample(key="k", image=jpeg(), caption="", meta={"x": "y" * (65 << 10)}),
    ],
)
def test_writer_refuses_bad_samples_and_leaves_nothing(
    tmp_path: Path, sample: StoredSample
) -> None:
    with pytest.raises(ValueError):
        write_shard(tmp_path / "s.tar", [stored("fine"), sample])
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_a_key_that_comes_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="duplicate"):
        write_shard(tmp_path / "s.tar", [stored("k"), stored("k")])
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writer_leaves_no_shard_under_the_final_name(tmp_path: Path) -> None:
    def samples():
        yield stored("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "s.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_image_suffix_goes_by_magic_bytes() -> None:
    assert image_suffix(jpeg()) == "jpg"
    with pytest.raises(ValueError, match="not a JPEG"):
        image_suffix(b"GIF89a")


def test_missing_and_damaged_manifests_are_named(tmp_path: Path) -> None:
    (tmp_path / "negatives").mkdir()
    with pytest.raises(FileNotFoundError, match="has the folders: .*negatives"):
        read_manifest(tmp_path / "negative")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="src.check"):
        read_manifest(tmp_path)
    for text in ("{", "[]", '{"version": 9, "shards": []}', '{"version": 1, "shards": [{}]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="manifest.json"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1, "shards": []}')
    with pytest.raises(ValueError, match="no samples"):
        read_manifest(tmp_path)


def test_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    entry = {"name": "../../etc/passwd", "count": 1, "bytes": 1, "sha256": ""}
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "shards": [entry]}))
    with pytest.raises(ValueError, match="shard name"):
        read_manifest(tmp_path)


def test_changed_or_missing_shards_stop_at_start_up(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, shard_folder(tmp_path, [2, 2]))
    folder.check_sizes()
    with open(tmp_path / "s-001.tar", "ab") as file:
        file.write(b"\0")
    with pytest.raises(StorageError, match="s-001.tar has"):
        folder.check_sizes()
    os.remove(tmp_path / "s-001.tar")
    with pytest.raises(StorageError, match="s-001.tar is missing"):
        folder.check_sizes()


def test_pickled_index_is_not_unpickled(tmp_path: Path) -> None:
    """An .npy of objects would run code on loading."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    shard_folder(tmp_path, [1])
    np.save(index_path(tmp_path / "s-000.tar"), np.array([Evil()], dtype=object))
    with pytest.raises(StorageError, match="index"):
        load_index(tmp_path / "s-000.tar", count=1)
    index_path(tmp_path / "s-000.tar").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StorageError, match="index"):
        load_index(tmp_path / "s-000.tar", count=1)
    assert not (tmp_path / "owned").exists()


def test_index_of_another_tar_is_refused(tmp_path: Path) -> None:
    shard_folder(tmp_path, [2, 3])
    os.replace(index_path(tmp_path / "s-001.tar"), index_path(tmp_path / "s-000.tar"))
    with pytest.raises(StorageError, match="manifest says 2"):
        load_index(tmp_path / "s-000.tar", count=2)


def test_read_past_the_end_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", (0.0, 0.0))
    folder = ShardFolder(tmp_path, shard_folder(tmp_path, [3]))
    os.truncate(tmp_path / "s-000.tar", 2000)
    with pytest.raises(StorageError, match="s-000.tar: read failed"):
        folder.read(0, 2)


def test_few_tars_stay_open(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, shard_folder(tmp_path, [1] * 6), max_open=2)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    keys = [folder.read(i % 6, 0).key for i in range(12)]
    assert keys == [f"s{i % 6:03d}-000" for i in range(12)]
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 2
    copy = pickle.loads(pickle.dumps(folder))
    folder.close()
    assert copy.read(3, 0).key == "s003-000"


def test_index_agrees_with_tarfile(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [stored(f"k{i}") for i in range(5)])
    rows = index_tar(tmp_path / "s.tar").rows
    with tarfile.open(tmp_path / "s.tar", "r:") as tar:
        for row in rows:
            member = tar.getmember(row["key"].decode() + ".jpg")
            assert (member.offset_data, member.size) == (row["image_offset"], row["image_size"])
