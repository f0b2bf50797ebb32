"""Weights by name, fetched by huggingface_hub from a server of its protocol on loopback."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from open_supir.base import hub
from open_supir.base.hub import Named, fetch, is_named, named, push, short_names
from open_supir.base.places import CONF, located
from tests.base.hub_server import COMMIT, HubServer
from tests.test_configs import ROOT

BODY = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, with one file; caches are in tmp_path. (The constants are those of HF_ENDPOINT and
    HF_HOME, which huggingface_hub reads when it is imported.)
    """
    made = HubServer()
    made.files["owner/repo/model.safetensors"] = BODY
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_ACCEPTED", set())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield made
    made.close()


def _named(file: str = "model.safetensors", revision: str | None = None) -> Named:
    return Named(name="short", repo="owner/repo", file=file, revision=revision)


def test_a_file_is_fetched_through_the_redirect_once(server: HubServer) -> None:
    address = "hf://owner/repo/model.safetensors"
    assert located(address).read_bytes() == BODY
    asked = len(server.requests)
    assert located(address).read_bytes() == BODY and len(server.requests) == asked
    assert fetch(named(f"{address}@{COMMIT}", CONF)).read_bytes() == BODY


def test_a_body_that_breaks_off_goes_on_where_it_stopped(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    server.breaks_after = 100_000
    assert fetch(_named()).read_bytes() == BODY
    assert [r for r in server.requests if "bytes=100000-" in r]


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (_named("other.bin"), FileNotFoundError, "short: other.bin: .*/repo has no such file"),
        (_named(revision="v9"), FileNotFoundError, "owner/repo has no revision v9"),
        (replace(_named(), repo="owner/none"), PermissionError, "owner/none does not exist or"),
        (replace(_named(), sha256="0" * 64), ValueError, "has the SHA-256 .*, expected 0000"),
    ],
    ids=["404", "revision", "401", "hash"],
)  # fmt: skip
def test_errors_are_one_line_and_say_what_to_do(
    server: HubServer, wanted: Named, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        fetch(wanted)
    assert "\n" not in str(raised.value)
    assert hub.cached(wanted) is None


def test_a_file_behind_a_login_needs_the_token(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gated.add("owner/repo")
    with pytest.raises(PermissionError, match="run `hf auth login` or set HF_TOKEN"):
        fetch(_named())
    monkeypatch.setenv("HF_TOKEN", "good")
    assert fetch(_named()).read_bytes() == BODY


def test_damaged_content_is_told_by_the_hash_that_the_hub_sends(server: HubServer) -> None:
    server.damaged.add("owner/repo/model.safetensors")
    with pytest.raises(
        ValueError, match=f"expected {hashlib.sha256(BODY).hexdigest()}; the copy was"
    ):
        fetch(_named())
    server.damaged.clear()
    assert fetch(_named()).read_bytes() == BODY


def test_without_a_network_one_line_says_what_to_put_where(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not in the cache.*its path in place of short"):
        fetch(_named())
    assert not server.requests


def test_a_full_disk_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers every write as a full disk does."""
    real = Path.open

    def full(path: Path, mode: str = "r", *more: object, **options: object):  # noqa: ANN202
        is_download = path.name.endswith(".incomplete")
        return real(Path("/dev/full") if is_download else path, mode, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=f"no space left in {tmp_path / 'hub'}"):
        fetch(_named())


def test_a_licence_without_commercial_use_must_be_accepted(server: HubServer) -> None:
    wanted = replace(_named(), licence="L (non-commercial)", accept="word")
    with pytest.raises(ValueError, match=r"L \(non-commercial\)\. .*add accept_license=\[word\]"):
        fetch(wanted)
    assert not server.requests
    hub.accept(["word"])
    assert fetch(wanted).read_bytes() == BODY


def test_a_repository_is_pushed_and_fetched_whole(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "made" / "unet").mkdir(parents=True)
    (tmp_path / "made" / "config.json").write_text("{}")
    (tmp_path / "made" / "unet" / "model.safetensors").write_bytes(BODY)
    server.gated.add("me/mine")
    with pytest.raises(PermissionError, match="push_to_hub=me/mine: .*run `hf auth login`"):
        push(tmp_path / "made", "me/mine")
    server.gated.clear()
    assert push(tmp_path / "made", "me/mine") == "hf://me/mine"
    folder = located("hf://me/mine")
    assert (folder / "unet" / "model.safetensors").read_bytes() == BODY
    assert (folder / "config.json").read_text() == "{}"


def test_short_names_are_complete_and_a_local_file_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in short_names(CONF).items():
        assert is_named(name, CONF) and file.licence and file.title
        assert ("non-commercial" in file.licence) == (file.accept is not None)
    assert not is_named("clean", CONF) and not is_named("runs/sdxl", CONF)
    (tmp_path / "sdxl").touch()
    assert located("sdxl") == Path("sdxl")
    with pytest.raises(ValueError, match=r"expected hf://OWNER/REPO\["):
        named("hf://owner", CONF)


def test_the_command_downloads_and_lists(server: HubServer, tmp_path: Path) -> None:
    """In a process of its own, which reads HF_ENDPOINT and HF_HOME by itself."""
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"),
                 "PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}  # fmt: skip
    server.files["Kijai/SUPIR_pruned/SUPIR-v0Q_fp16.safetensors"] = BODY

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "open_supir", "download", *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True)

    refused = run("supir-v0q")
    assert refused.returncode == 1 and "accept_license=[supir]" in refused.stderr
    done = run("supir-v0q", "accept_license=[supir]")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip().removeprefix("supir-v0q: ")).read_bytes() == BODY
    assert done.stderr.count("SUPIR licence (non-commercial)") == 1
    lines = run().stdout.splitlines()
    assert [line for line in lines if line.startswith("supir-v0q: ") and "in the cache" in line]
