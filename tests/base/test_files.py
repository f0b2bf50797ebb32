"""Files are whole under their final name, or not there."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from open_supir.base.files import (
    remove_leftovers,
    replacing,
    sha256_of,
    temporary_name,
    write_bytes,
    write_text,
)


def test_text_comes_back_and_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a/b" / ("é" * 127)  # 254 bytes: the longest name that most disks take
    write_text(path, "Zoë\r\n")
    assert path.read_bytes() == "Zoë\r\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_bytes(path, b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("open_supir.base.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_bytes(path, b"new", fsync=False)
    assert path.read_bytes() == b"new"


def test_a_file_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(b"half")
            assert not path.exists()
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_share_a_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with replacing(path) as one, replacing(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the block that ends last


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()


def test_a_dead_writer_s_temporary_file_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    host, dead_pid = socket.gethostname(), 2**22 + 1  # beyond the highest process number
    parts = temporary_name(tmp_path / "a").name.split(".")
    assert parts[2:] == [*host.split("."), str(os.getpid()), "tmp"]
    dead, living, elsewhere, old, foreign = (
        tmp_path / name
        for name in (
            f".{parts[1]}.{host}.{dead_pid}.tmp",
            f".{parts[1]}.{host}.{os.getppid()}.tmp",
            f".{parts[1]}.other-host.1.tmp",
            f".{parts[1]}.other-host.2.tmp",
            ".letter.tmp",
        )
    )
    for path in (dead, living, elsewhere, old, foreign):
        path.write_bytes(b"half")
        os.utime(path, None if path == elsewhere else (0, 0))
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {living, elsewhere, foreign}


def test_hash_is_sha_256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_hash_of_a_folder_covers_its_weight_files_alone(tmp_path: Path) -> None:
    for name in ("vae/b.safetensors", "unet/a.bin", "unet/config.json", "model_index.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    lines = "".join(
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
        for name in ("unet/a.bin", "vae/b.safetensors")
    )
    assert sha256_of(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
