"""Tars that lie, end early, expand or carry code: indexed for what is good, or refused by name.

Every case is one that webdataset or tarfile reads silently wrongly or dangerously by default.
"""

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from open_supir.data.index import TarDamage, index_tar
from open_supir.data.stream import tar_samples
from tests.data.made import good_members, jpeg, tar_bytes


def indexed(tmp_path: Path, data: bytes):
    path = tmp_path / "hostile.tar"
    path.write_bytes(data)
    return index_tar(path)


def keys(index) -> list[str]:
    return [row["key"].decode() for row in index.rows]


def streamed(data: bytes) -> tuple[list[str], str]:
    """Keys that the stream reader yields, and the damage it ends with."""
    found = []
    try:
        for raw in tar_samples(io.BytesIO(data)):
            found.append(raw.key)
    except TarDamage as damage:
        return found, str(damage)
    return found, ""


class Evil:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pickle", "pth", "pickle.gz"])
def test_pickled_members_are_never_loaded(tmp_path: Path, suffix: str) -> None:
    code = pickle.dumps(Evil(tmp_path / "owned"))
    code = gzip.compress(code) if suffix.endswith("gz") else code
    data = tar_bytes([("a.jpg", jpeg()), (f"a.{suffix}", code), ("b.jpg", jpeg())])
    index = indexed(tmp_path, data)
    assert keys(index) == ["a", "b"] and not index.damage
    assert sum(index.skipped.values()) == 1
    assert streamed(data) == (["a", "b"], "")
    assert not (tmp_path / "owned").exists()


def test_gzip_member_is_not_expanded(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (8 << 20))
    index = indexed(tmp_path, tar_bytes([("a.jpg", jpeg()), ("a.txt.gz", bomb)]))
    assert keys(index) == ["a"] and index.rows["text_size"].tolist() == [0]


def sparse_tar(real: int) -> bytes:
    """An old GNU sparse member of 512 stored bytes that claims to be `real` bytes long."""
    info = tarfile.TarInfo("a.jpg")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    header[386:398] = b"%011o\0" % (real - 512)
    header[398:410] = b"%011o\0" % 512
    header[482] = 0
    header[483:495] = b"%011o\0" % real
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512 + b"\0" * 1024


def test_sparse_member_is_skipped_unread(tmp_path: Path) -> None:
    """A tar of 2 KiB that webdataset expands to 512 MiB."""
    data = sparse_tar(1 << 29)
    index = indexed(tmp_path, data)
    assert keys(index) == [] and index.skipped == {"not a plain file": 1}
    assert streamed(data) == ([], "")


def test_pax_sparse_member_is_skipped(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 4
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
        tar.addfile(info, io.BytesIO(b"abcd"))
        tar.addfile(tarfile.TarInfo("b.txt"))
    assert keys(indexed(tmp_path, data.getvalue())) == []


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_refused(tmp_path: Path, compress) -> None:
    data = compress(tar_bytes(good_members(1)))
    assert "not an uncompressed tar" in str(indexed(tmp_path, data).damage)
    assert "not an uncompressed tar" in streamed(data)[1]


@pytest.mark.parametrize("kind", ["header", "zeros"])
def test_damage_in_the_middle_is_reported_with_its_place(tmp_path: Path, kind: str) -> None:
    """webdataset ends here without a word, keeping what came before."""
    data = bytearray(tar_bytes(good_members(6)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offset = [member.offset for member in tar][6]
    if kind == "header":
        data[offset : offset + 20] = b"\xff" * 20
    else:
        data[offset : offset + 1024] = b"\0" * 1024
    index = indexed(tmp_path, bytes(data))
    assert keys(index) == ["000", "001"] and str(offset)[:3] in str(index.damage)
    found, damage = streamed(bytes(data))
    assert found == ["000"] and damage  # the last sample before damage may lack members


def test_truncated_tar_keeps_whole_samples_and_says_so(tmp_path: Path) -> None:
    data = tar_bytes(good_members(6))
    index = indexed(tmp_path, data[: int(len(data) * 0.55)])
    assert "truncated" in str(index.damage) and 0 < len(index.rows) < 6
    assert all(row["image_offset"] + row["image_size"] < len(data) * 0.55 for row in index.rows)
    assert streamed(data[: int(len(data) * 0.55)])[1]


@pytest.mark.parametrize("data", [b"<html>404</html>" * 100, b"", b"x" * 100])
def test_no_tar_at_all_is_damage(tmp_path: Path, data: bytes) -> None:
    index = indexed(tmp_path, data)
    assert index.damage and len(index.rows) == 0
    assert streamed(data)[1]


def test_duplicate_member_drops_the_sample(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg()), ("a.jpg", jpeg()), ("a.txt", b"x"), ("b.jpg", jpeg())]
    index = indexed(tmp_path, tar_bytes(members))
    assert keys(index) == ["b"] and index.skipped == {"duplicate member": 1}


def test_two_image_formats_of_one_key_are_a_duplicate(tmp_path: Path) -> None:
    index = indexed(tmp_path, tar_bytes([("a.jpg", jpeg()), ("a.png", jpeg())]))
    assert keys(index) == []


def test_members_of_a_key_are_found_when_not_adjacent(tmp_path: Path) -> None:
    members = [("a.jpg", jpeg()), ("b.jpg", jpeg()), ("a.txt", b"late"), ("b.txt", b"b")]
    index = indexed(tmp_path, tar_bytes(members))
    assert keys(index) == ["a", "b"] and index.rows["text_size"].tolist() == [4, 1]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/x.jpg",
        "/abs/y.jpg",
        "img.v2.jpg",
        "noext",
        ".hidden.jpg",
        "d.ir/k.jpg",
        "z.__bad__",
        "q.__key__",
        "__meta__/m.jpg",
        "sp ace.jpg",
        "caf\u00e9.jpg",
        "k" * 129 + ".jpg",
    ],
)
def test_odd_names_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    data = tar_bytes([(name, jpeg()), ("z.jpg", jpeg())], format=tarfile.PAX_FORMAT)
    index = indexed(tmp_path, data)
    assert keys(index) == ["z"] and sum(index.skipped.values()) == 1
    assert streamed(data) == (["z"], "")


def test_upper_case_suffixes_and_dot_slash_are_read(tmp_path: Path) -> None:
    data = tar_bytes([("./UP.JPG", jpeg()), ("./UP.TXT", b"t")])
    index = indexed(tmp_path, data)
    assert keys(index) == ["UP"] and index.rows["text_size"].tolist() == [1]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_gnu_and_pax_are_read(tmp_path: Path, format: int) -> None:
    key = "k" * 120
    data = tar_bytes([(f"{key}.jpg", jpeg()), (f"{key}.txt", b"t")], format=format)
    index = indexed(tmp_path, data)
    assert keys(index) == [key] and not index.damage
    assert streamed(data) == ([key], "")


@pytest.mark.parametrize(
    ("suffix", "size", "reason"),
    [("txt", 17 << 10, "text larger"), ("json", 65 << 10, "meta larger")],
)
def test_large_members_drop_the_sample(tmp_path: Path, suffix: str, size: int, reason: str) -> None:
    members = [("a.jpg", jpeg()), (f"a.{suffix}", b"x" * size), ("b.jpg", jpeg())]
    index = indexed(tmp_path, tar_bytes(members))
    assert keys(index) == ["b"] and reason in next(iter(index.skipped))


def test_large_image_is_refused_from_its_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 33 << 20
    path = tmp_path / "big.tar"
    with open(path, "wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(512 + info.size + 1024)  # a hole: no disk, no memory
    index = index_tar(path)
    assert keys(index) == [] and "image larger" in next(iter(index.skipped))


def test_links_and_devices_are_skipped(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        device = tarfile.TarInfo("c.jpg")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    index = indexed(tmp_path, data.getvalue())
    assert keys(index) == [] and index.skipped == {"not a plain file": 3}


def test_sample_without_image_is_counted(tmp_path: Path) -> None:
    index = indexed(tmp_path, tar_bytes([("a.txt", b"x"), ("b.jpg", jpeg()), ("c.jpg", b"")]))
    assert keys(index) == ["b"] and index.skipped == {"no image": 2}


def test_forged_sizes_do_not_reach_outside_the_file(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 40
    data = info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048
    assert "past the end" in str(indexed(tmp_path, data).damage)
