"""The page over a tiny checkpoint: its interface by Gradio's client, and by hand in Chromium."""

import io
import json
import os
import socket
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from src.inference.photo import read_photo
from tests.integration.browser import CHROMIUM, Browser
from tests.test_configs import CONF

gradio_client = pytest.importorskip("gradio_client", reason="the page needs the extra `web`")
pytest.importorskip("gradio", reason="the page needs the extra `web`")

pytestmark = pytest.mark.slow  # importing gradio alone takes ten seconds on two busy cores
DIALS = [2, 1, 3, 1, "wavelet", "png", "as the input", 2, 1, 1, 0, "sharp", "blurred"]


@pytest.fixture(scope="module")
def url(stage_2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from src.webui import launch

    folder = tmp_path_factory.mktemp("page")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("webui", overrides=[f"checkpoint={stage_2}", f"port={port}", "device=cpu",
                                          "max_pixels=500000", "max_files=3"])  # fmt: skip
        page = launch(cfg, folder, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    values[..., 3] |= 1
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _client(url: str):
    return gradio_client.Client(url, verbose=False)


def test_restored_image_keeps_alpha_and_holds_its_settings(url: str, photo: Path) -> None:
    job = _client(url).submit(
        gradio_client.handle_file(str(photo)), "a cat", "as the checkpoint says", *DIALS,
        api_name="/restore",
    )  # fmt: skip
    result = job.result(timeout=120)
    lists = [part for part in result if isinstance(part, list)]
    (files,) = [part for part in lists if "_restored" in Path(str(part[0])).name]
    back = read_photo(Path(files[0]))
    assert back.rgb.shape == (3, 80, 120) and back.alpha is not None
    with Image.open(files[0]) as image:
        record = json.loads(image.info["restoration"])
    assert record["options"]["seed"] == 3 and record["prompt"].startswith("a cat, sharp")
    assert len(job.outputs()) > 2  # previews came while sampling


def test_batch_gives_an_archive_and_one_line_a_file(url: str, photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>")
    files = [gradio_client.handle_file(str(p)) for p in (photo, bad)]
    packed, report = _client(url).predict(
        files, "as the checkpoint says", *DIALS, api_name="/batch"
    )
    assert [row[0] for row in report["data"]] == ["photo.png", "bad.png"]
    assert report["data"][0][1] == "restored" and "cannot be read" in report["data"][1][1]
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert names == ["001_photo_restored.png", "001_photo_restored.png.json"]
        assert Image.open(io.BytesIO(archive.read(names[0]))).size == (120, 80)


def test_files_of_the_server_are_not_served(url: str) -> None:
    for path in ("/etc/passwd", str(Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{url}/gradio_api/file={path}"
            )
        assert caught.value.code in (403, 404)


def test_too_large_uploads_are_refused(url: str, tmp_path: Path) -> None:
    Image.new("RGB", (1000, 1000)).save(tmp_path / "big.png")
    with pytest.raises(Exception, match="limit 500000"):
        _client(url).predict(
            gradio_client.handle_file(str(tmp_path / "big.png")), "", "as the checkpoint says",
            *DIALS, api_name="/restore",
        )  # fmt: skip


def test_other_hosts_need_a_password(stage_2: Path, tmp_path: Path, monkeypatch) -> None:
    from src.webui import launch

    monkeypatch.delenv("OPEN_SUPIR_PASSWORD", raising=False)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("webui", overrides=[f"checkpoint={stage_2}", "host=0.0.0.0"])
        with pytest.raises(ValueError, match="OPEN_SUPIR_PASSWORD"):
            launch(cfg, tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_in_a_browser(url: str, tmp_path: Path) -> None:
    """Upload, restore, compare; nothing is asked of any other host."""
    from skimage import data

    photo = tmp_path / "coffee.png"
    Image.fromarray(data.coffee()[100:292, 150:406]).resize((128, 96)).save(photo)
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.enable")
        browser.call("Page.navigate", url=url)
        browser.wait_for("!!document.querySelector('#upload input[type=file]')")
        browser.upload("#upload input[type=file]", photo)
        browser.wait_for("!!document.querySelector('#upload img')")
        browser.evaluate("document.querySelector('#restore').click()")
        browser.wait_for("document.querySelectorAll('#slider img').length >= 2", 120)
        browser.wait_for(
            "[...document.querySelectorAll('#slider img')].every(i => i.naturalWidth == 128)"
        )
        sources = browser.evaluate(
            "[...document.querySelectorAll('#slider img')].map(i => i.src.split('?')[0])"
        )
        assert all(source.endswith(".png") for source in sources)
        hosts = browser.evaluate(
            "[...new Set(performance.getEntriesByType('resource').map(e => new URL(e.name).host))]"
        )
        assert {host.split(":")[0] for host in hosts if host} <= {"127.0.0.1"}
        browser.screenshot(Path(os.environ.get("SCREENSHOT", tmp_path / "page.png")))
    finally:
        browser.close()
