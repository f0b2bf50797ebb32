"""The page over a tiny checkpoint: its interface by Gradio's client, and by hand in Chromium."""

import importlib.util
import io
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from open_supir.base.images import read_photo
from open_supir.webui.studio import RUN, Studio
from tests.integration.browser import CHROMIUM, Browser
from tests.test_configs import CONF
from tests.waiting import PATIENCE, wait_for

if importlib.util.find_spec("gradio") is None:  # importing it takes seconds: not at collection
    pytest.skip("the page needs the extra `web`", allow_module_level=True)

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
OWN = "checkpoint default"
DIALS = [2, 1, 3, 1, "wavelet", "png", "as the input", 2, 1, 1, 0, "sharp", "blurred"]
STEPS = "input[aria-label='number input for Steps']"
STATUS, CAPTION = "#status textarea", "#caption textarea"


class ColourWords:
    """A captioner that looks: names the strongest channel."""

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        return "something " + ("red", "green", "blue")[int(image.mean(dim=(1, 2)).argmax())]


@pytest.fixture(scope="module")
def url(stage_2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from open_supir.commands.webui import launch

    folder = tmp_path_factory.mktemp("page")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("webui", overrides=[
            f"checkpoint={stage_2}", f"port={port}", "device=cpu", "max_pixels=500000",
            "max_files=3", "max_file_mb=1", "queue=2",
            f"captioner._target_={__name__}.ColourWords",
        ])  # fmt: skip
        page = launch(cfg, folder, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser, url: str) -> Browser:
    """One tab, the page loaded anew."""
    chromium.open(url)
    chromium.wait_for("!!document.querySelector('#upload input[type=file]')")
    return chromium


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    values[..., 3] |= 1
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def _client(url: str):
    from gradio_client import Client

    return Client(url, verbose=False)


def _file(path: Path):
    from gradio_client import handle_file

    return handle_file(str(path))


def test_restored_image_keeps_alpha_and_holds_its_settings(url: str, photo: Path) -> None:
    job = _client(url).submit(
        _file(photo), "a cat", OWN, *DIALS,
        api_name="/restore",
    )  # fmt: skip
    result = job.result(timeout=PATIENCE)
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
    files = [_file(p) for p in (photo, bad)]
    packed, report = _client(url).predict(files, OWN, *DIALS, api_name="/batch")
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


def test_too_many_pixels_are_refused(url: str, tmp_path: Path) -> None:
    Image.new("RGB", (1000, 1000)).save(tmp_path / "big.png")
    with pytest.raises(Exception, match="limit 500000"):
        _client(url).predict(
            _file(tmp_path / "big.png"), "", OWN,
            *DIALS, api_name="/restore",
        )  # fmt: skip


def test_too_large_files_are_refused(url: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    assert (tmp_path / "big.png").stat().st_size > 2**20
    with pytest.raises(Exception, match="413|(?i:large)"):
        _client(url).predict(
            _file(tmp_path / "big.png"), "", OWN, *DIALS,
            api_name="/restore",
        )  # fmt: skip


def test_requests_wait_for_each_other_and_too_many_are_refused(url: str, photo: Path) -> None:
    client, file = _client(url), _file(photo)
    slow = [*DIALS[:7], 25, *DIALS[8:]]
    jobs = [client.submit(file, "", OWN, *slow, api_name="/restore") for _ in range(6)]
    ended = [job.exception(timeout=PATIENCE) for job in jobs]
    assert sum(error is None for error in ended) >= 2
    refused = [str(error) for error in ended if error is not None]
    assert refused and all("queue" in text.lower() for text in refused), refused


def test_other_hosts_need_a_password(stage_2: Path, tmp_path: Path, monkeypatch) -> None:
    from open_supir.commands.webui import launch

    monkeypatch.delenv("OPEN_SUPIR_PASSWORD", raising=False)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("webui", overrides=[f"checkpoint={stage_2}", "host=0.0.0.0"])
        with pytest.raises(ValueError, match="OPEN_SUPIR_PASSWORD"):
            launch(cfg, tmp_path)


@in_chromium
def test_upload_restore_compare_and_download(browser: Browser, url: str, tmp_path: Path) -> None:
    """Lossless pictures, settings in the file, a line of history, and no other host is asked."""
    from skimage import data

    photo = tmp_path / "coffee.png"
    Image.fromarray(data.coffee()[100:292, 150:406]).resize((128, 96)).save(photo)
    browser.upload("#upload input[type=file]", photo)
    browser.wait_for("!!document.querySelector('#upload img')")
    for seed in (5, 6):
        browser.type("input[aria-label=Seed]", str(seed))
        browser.click("#restore")
        browser.wait_for(f"document.querySelector('#history').innerText.includes('{seed}')")
    browser.wait_for(
        "document.querySelectorAll('#slider img').length >= 2 &&"
        "[...document.querySelectorAll('#slider img')].every(i => i.naturalWidth == 128)"
    )
    sources = browser.evaluate(
        "[...document.querySelectorAll('#slider img')].map(i => i.src.split('?')[0])"
    )
    assert all(source.endswith(".png") for source in sources)
    link = browser.evaluate("document.querySelector('#download a[href]').href")
    with Image.open(io.BytesIO(_opened(link))) as image:
        assert image.size == (128, 96)
        assert json.loads(image.info["restoration"])["options"]["seed"] == 6
    hosts = browser.evaluate(
        "[...new Set(performance.getEntriesByType('resource').map(e => new URL(e.name).host))]"
    )
    assert {host.split(":")[0] for host in hosts if host} <= {"127.0.0.1"}
    browser.screenshot(Path(os.environ.get("SCREENSHOT", tmp_path / "page.png")))


@in_chromium
def test_cancel_stops_the_run_and_the_next_one_goes_through(browser: Browser, photo: Path) -> None:
    browser.upload("#upload input[type=file]", photo)
    browser.wait_for("!!document.querySelector('#upload img')")
    _open_sampling(browser)
    _set(browser, "Steps", "200")
    browser.click("#restore")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.startsWith('sampling')")
    labels = browser.evaluate("[...document.querySelectorAll('button')].map(b => b.ariaLabel)")
    assert "Remove Image" in labels and "Share" not in labels  # which would send the preview away
    browser.click("#cancel")
    browser.wait_for(f"document.querySelector({STATUS!r}).value == 'cancelled'")
    assert browser.evaluate("document.querySelectorAll('#slider img').length") == 0
    _set(browser, "Steps", "2")
    browser.click("#restore")
    browser.wait_for(f"/^[0-9.]+ s$/.test(document.querySelector({STATUS!r}).value)")


@pytest.mark.slow  # the server notices after seconds
@in_chromium
def test_leaving_the_page_ends_its_run(
    browser: Browser, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[object] = []
    monkeypatch.setattr(Studio, "save", lambda *given: saved.append(given))
    browser.upload("#upload input[type=file]", photo)
    browser.wait_for("!!document.querySelector('#upload img')")
    _open_sampling(browser)
    _set(browser, "Steps", "200")
    _set(browser, "Samples", "8")
    browser.click("#restore")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.startsWith('sampling')")
    browser.open("about:blank")
    wait_for(
        lambda: RUN not in [thread.name for thread in threading.enumerate()], what="the run's end"
    )
    time.sleep(0.5)  # in which a run that came to its end would be saved
    assert not saved


@in_chromium
def test_captions_are_asked_for_edited_and_dropped_with_their_image(
    browser: Browser, tmp_path: Path
) -> None:
    for name, colour in (("one", (230, 60, 40)), ("two", (40, 60, 230))):
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{name}.png")
    browser.upload("#upload input[type=file]", tmp_path / "one.png")
    browser.wait_for("!!document.querySelector('#upload img')")
    browser.click("#describe")
    browser.wait_for(f"document.querySelector({CAPTION!r}).value.startsWith('something ')")
    browser.type(CAPTION, "a tomato")
    browser.click("#restore")
    browser.wait_for("document.querySelector('#history').innerText.includes('a tomato')")
    browser.click("#upload button[aria-label='Remove Image']")
    browser.wait_for(f"document.querySelector({CAPTION!r}).value == ''")
    browser.upload("#upload input[type=file]", tmp_path / "two.png")
    browser.wait_for("!!document.querySelector('#upload img')")
    browser.click("#restore")
    browser.wait_for("document.querySelector('#history').innerText.includes('something ')")


@in_chromium
def test_presets_set_the_dials(browser: Browser) -> None:
    browser.evaluate("document.querySelector('input[aria-label=Preset]').focus()")
    browser.wait_for("!!document.querySelector('[role=option]')")
    browser.evaluate(
        "[...document.querySelectorAll('[role=option]')].find(o => o.innerText.includes('quality'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    _open_sampling(browser)
    browser.wait_for(f"document.querySelector({STEPS!r})?.value == '50'")
    assert browser.value("input[aria-label='number input for Control']") == "0.93"


@in_chromium
def test_batch_tab_restores_reports_and_packs(
    browser: Browser, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"<html>")
    browser.click("#batch-button")
    browser.wait_for("!!document.querySelector('#files input[type=file]')")
    browser.upload("#files input[type=file]", photo, tmp_path / "bad.png")
    browser.wait_for("document.querySelector('#files').innerText.includes('bad')")
    browser.click("#restore_all")
    browser.wait_for("document.querySelector('#report').innerText.includes('cannot be read')")
    assert "restored" in browser.evaluate("document.querySelector('#report').innerText")
    link = browser.wait_for("document.querySelector('#packed a[href]')?.href")
    with zipfile.ZipFile(io.BytesIO(_opened(link))) as archive:
        assert archive.namelist() == ["001_photo_restored.png", "001_photo_restored.png.json"]


def _open_sampling(browser: Browser) -> None:
    browser.evaluate(
        "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Sampling'))"
        ".click()"
    )
    browser.wait_for(f"!!document.querySelector({STEPS!r})")


def _set(browser: Browser, dial: str, value: str) -> None:
    """Type until the slider beside the number follows: just after it appeared it does not."""

    def taken() -> bool:
        browser.type(f"input[aria-label='number input for {dial}']", value)
        time.sleep(0.2)
        return browser.value(f"input[aria-label='range slider for {dial}']") == value

    wait_for(taken, what=f"the dial {dial} takes what is typed")


def _opened(link: str) -> bytes:
    """Return what a link of the page leads to; the machine's proxies are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(link).read()
