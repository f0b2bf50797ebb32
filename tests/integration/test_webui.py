"""The page over a tiny checkpoint: its interface by Gradio's client, and by hand in Chromium."""

import importlib.util
import io
import json
import os
import re
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
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

from open_supir.base.files import sha256_of
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
WHOLE = (None, "restore it")  # nothing is painted
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
        _file(photo), "a cat", *WHOLE, OWN, *DIALS,
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


def test_what_is_painted_is_protected_to_the_bit(url: str, photo: Path, tmp_path: Path) -> None:
    """The mask comes with the result, and its hash is in the record, as from the command line."""
    layer = Image.new("RGBA", (30, 20))  # the editor's canvas has a size of its own
    layer.paste((225, 29, 72, 128), (0, 0, 15, 20))
    layer.save(tmp_path / "layer.png")
    painting = {"background": None, "layers": [_file(tmp_path / "layer.png")], "composite": None}
    result = _client(url).predict(
        _file(photo), "", painting, "protect it", OWN, 1, 1, 3, 1, "none", "png", *DIALS[6:],
        api_name="/restore",
    )  # fmt: skip
    lists = [part for part in result if isinstance(part, list)]
    ((image, mask),) = [part for part in lists if "_restored" in Path(str(part[0])).name]
    assert Path(mask).name == "photo.mask.png"
    with Image.open(mask) as drawn:
        assert drawn.getpixel((3, 3)) == 0 and drawn.getpixel((25, 3)) == 255
    before, after = read_photo(photo).rgb, read_photo(Path(image)).rgb
    assert torch.equal(after[..., :29], before[..., :29])
    assert (after - before)[..., 45:].abs().mean() > 0.01
    with Image.open(image) as picture:
        assert json.loads(picture.info["restoration"])["mask"] == sha256_of(Path(mask))


def test_batch_gives_an_archive_of_the_same_tree_and_one_line_a_file(
    url: str, photo: Path, tmp_path: Path
) -> None:
    """Captions come from the table, else from the texts beside the images, else are asked for."""
    names = ("a/one.png", "a/b/two.png", "a/b/three.png")
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
        for name in names:
            archive.write(photo, name)
        archive.writestr("a/b/two.txt", "a boat")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    files = [_file(tmp_path / "album.zip"), _file(tmp_path / "bad.png")]
    table = {"headers": ["image", "caption"], "data": [["a/one.png", "a cat"]], "metadata": None}
    refused = _client(url).submit(files, OWN, *DIALS, table, api_name="/batch")
    assert "4 images, limit 3" in str(refused.exception(timeout=PATIENCE))
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("c/bad.png", b"<html>")
        for name in names[:2]:
            archive.write(photo, name)
        archive.writestr("a/b/two.txt", "a boat")
    files = [_file(tmp_path / "bad.zip")]
    packed, report, status = _client(url).predict(files, OWN, *DIALS, table, api_name="/batch")
    said = dict(report["data"])
    assert list(said) == ["a/b/two.png", "a/one.png", "c/bad.png"]
    assert said["a/one.png"] == "restored" and "cannot be read" in said["c/bad.png"]
    assert status.startswith("done, 2 of 3 restored")
    with zipfile.ZipFile(packed) as archive:
        assert set(archive.namelist()) == {*names[:2], *(f"{name}.json" for name in names[:2])}
        assert Image.open(io.BytesIO(archive.read(names[0]))).size == (120, 80)
        records = [json.loads(archive.read(f"{name}.json")) for name in names[:2]]
    assert [record["caption"] for record in records] == ["a cat", "a boat"]


def test_a_mask_beside_an_image_of_a_batch_is_used(url: str, photo: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
        archive.write(photo, "a.png")
        Image.new("L", (8, 8), 0).save(tmp_path / "mask.png")
        archive.write(tmp_path / "mask.png", "a.mask.png")
    table = {"headers": ["image", "caption"], "data": [], "metadata": None}
    asked = ([_file(tmp_path / "album.zip")], OWN, 1, *DIALS[1:], table)
    packed, _, _ = _client(url).predict(*asked, api_name="/batch")
    with zipfile.ZipFile(packed) as archive:
        after = np.asarray(Image.open(io.BytesIO(archive.read("a.png"))))
        record = json.loads(archive.read("a.png.json"))
    assert np.array_equal(after, np.asarray(Image.open(photo)))
    assert record["mask"] == sha256_of(tmp_path / "mask.png")


def test_files_of_the_server_are_not_served(url: str) -> None:
    for path in ("/etc/passwd", str(Path(__file__))):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{url}/gradio_api/file={path}"
            )
        assert caught.value.code in (403, 404)


def test_too_many_pixels_are_refused_without_a_traceback(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (1000, 1000)).save(tmp_path / "big.png")
    with pytest.raises(Exception, match="limit 500000"):
        _client(url).predict(
            _file(tmp_path / "big.png"), "", *WHOLE, OWN,
            *DIALS, api_name="/restore",
        )  # fmt: skip
    assert "Traceback" not in capfd.readouterr().err


def test_too_large_files_are_refused(url: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "big.png")
    assert (tmp_path / "big.png").stat().st_size > 2**20
    with pytest.raises(Exception, match="413|(?i:large)"):
        _client(url).predict(
            _file(tmp_path / "big.png"), "", *WHOLE, OWN, *DIALS,
            api_name="/restore",
        )  # fmt: skip


def test_requests_wait_for_each_other_and_too_many_are_refused(url: str, photo: Path) -> None:
    client, file = _client(url), _file(photo)
    slow = [*DIALS[:7], 25, *DIALS[8:]]
    jobs = [client.submit(file, "", *WHOLE, OWN, *slow, api_name="/restore") for _ in range(6)]
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
    """Lossless pictures, settings in the file, a history to click, and no other host is asked."""
    photo = tmp_path / "coffee.png"
    _coffee(128, 96).save(photo)
    _upload(browser, photo)
    browser.wait_for(
        "document.querySelector('#plan').innerText == 'Input 128 x 96, result 128 x 96 pixels'"
    )
    for seed in (5, 6):
        browser.type("input[aria-label=Seed]", str(seed))
        _restore(browser)
        assert re.fullmatch(r"done, 128 x 96, [0-9.]+ s", browser.value(STATUS))
        browser.wait_for(f"document.querySelector('#history').innerText.includes('seed {seed}')")
    names = browser.evaluate("[...document.querySelectorAll('.strip span')].map(s => s.innerText)")
    assert names == ["before", "cleaned", "restored"]
    browser.wait_for(
        "[...document.querySelectorAll('#viewer img')].every(i => i.naturalWidth == 128)"
    )
    sources = browser.evaluate("[...document.querySelectorAll('#viewer img')].map(i => i.src)")
    assert all(source.endswith(".png") for source in sources)
    assert _seed_of_the_download(browser) == 6
    browser.click("#dice")
    browser.wait_for("!['5', '6'].includes(document.querySelector('input[aria-label=Seed]').value)")
    browser.click("#history [data-index='0']")
    browser.wait_for("document.querySelector('input[aria-label=Seed]').value == '5'")
    wait_for(lambda: _seed_of_the_download(browser) == 5, what="the first result's files")
    hosts = browser.evaluate(
        "[...new Set(performance.getEntriesByType('resource').map(e => new URL(e.name).host))]"
    )
    assert {host.split(":")[0] for host in hosts if host} <= {"127.0.0.1"}


@in_chromium
def test_a_region_is_painted_on_the_image(browser: Browser, tmp_path: Path) -> None:
    """A stroke along the lower border; far from it the result is the input."""
    _coffee(128, 96).save(tmp_path / "coffee.png")
    _upload(browser, tmp_path / "coffee.png")
    browser.click("#region button")
    browser.wait_for("document.querySelector('#painting canvas')?.clientHeight > 100")
    browser.evaluate("document.querySelector('#painting').scrollIntoView({block: 'center'})")
    _still(browser, browser.box("#painting"), tmp_path / "shot.png")
    browser.drag("#painting canvas", (0.4, 0.85), (0.6, 0.85))
    _restore(browser)
    links = browser.evaluate("[...document.querySelectorAll('#download a[href]')].map(a => a.href)")
    images = [Image.open(io.BytesIO(_opened(link))) for link in dict.fromkeys(links)]
    result, mask = (np.asarray(image.convert("RGB")).astype(int) for image in images)
    assert 0 < mask.mean() < 100  # a part
    painted = np.asarray(images[1].resize((128, 96))) > 0
    change = np.abs(result - np.asarray(_coffee(128, 96)).astype(int)).max(axis=2)
    assert change[painted].max() > 0
    assert change[:30].max() == 0 and not painted[:30].any()


@in_chromium
@pytest.mark.parametrize("size", [(144, 96), (96, 144)], ids=["landscape", "portrait"])
def test_halves_of_the_comparison_meet_at_any_width(
    browser: Browser, tmp_path: Path, size: tuple[int, int]
) -> None:
    """At strength 0 both halves are the input: together they are what each is alone, but for the
    line between them, and what Pillow makes of the input at that size, to a few levels.
    """
    photo = _coffee(*size)
    photo.save(tmp_path / "photo.png")
    _upload(browser, tmp_path / "photo.png")
    _set(browser, "Strength", "0")
    _restore(browser)
    for width in (390, 768, 1280, 1600):
        browser.resize(width, 900, phone=width < 500)
        browser.wait_for("[...document.querySelectorAll('.canvas img')].every(i => i.complete)")
        shots = []
        for border in (50, 0, 100):
            browser.type("#viewer input[type=range]", str(border))
            box = browser.box("#viewer .frame")
            shots.append(_still(browser, box, tmp_path / "shot.png"))
        both, right, left = shots
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.01)
        middle = both.shape[1] // 2
        away = np.abs(np.arange(both.shape[1]) - middle) > 4  # the line and its shadow
        assert np.array_equal(both[:, : middle - 4], left[:, : middle - 4])
        assert np.array_equal(both[:, middle + 5 :], right[:, middle + 5 :])
        expected = np.asarray(photo.resize(both.shape[1::-1], Image.Resampling.BILINEAR)).astype(
            int
        )
        assert np.abs(both - expected)[:, away].mean() < 4
    browser.resize(1280, 1400)


@in_chromium
def test_on_a_phone_the_image_is_first_and_restore_on_the_first_screen(browser: Browser) -> None:
    browser.resize(390, 667, phone=True)
    order = ["#upload", "#restore", "#viewer", "#dice"]
    boxes = [browser.box(selector) for selector in order]
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)
    assert boxes[1]["y"] + boxes[1]["height"] <= 667
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.resize(1280, 1400)


@in_chromium
def test_mistakes_stand_in_the_status_and_leave_no_traceback(
    browser: Browser, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    browser.click("#restore")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.includes('choose an image first')")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    browser.upload("#upload input[type=file]", tmp_path / "bad.png")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.includes('cannot be read')")
    _is_ready(browser)
    browser.evaluate(f"document.querySelector({STATUS!r}).value = ''")
    browser.click("#restore")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.includes('cannot be read')")
    _is_ready(browser)
    browser.click("#upload button[aria-label='Remove Image']")
    browser.wait_for(f"document.querySelector({STATUS!r}).value == ''")
    _upload(browser, photo)
    browser.type("input[aria-label=Seed]", "-1")
    browser.click("#restore")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.includes('seed must be')")
    time.sleep(1)
    assert "seed must be" in browser.value(STATUS)  # until the next action
    assert "Traceback" not in capfd.readouterr().err


@in_chromium
def test_what_gradio_refuses_stands_in_the_status_too(
    browser: Browser, photo: Path, tmp_path: Path
) -> None:
    """Files of more than `max_file_mb` never reach the handlers."""
    (tmp_path / "big.png").write_bytes(bytes(2**20 + 1))
    too_large = 'error: File(s) exceed the maximum allowed size of 1.0 Mb: "big.png"'
    browser.upload("#upload input[type=file]", tmp_path / "big.png")
    browser.wait_for(f"document.querySelector({STATUS!r}).value == {too_large!r}")
    _upload(browser, photo)
    browser.wait_for(f"document.querySelector({STATUS!r}).value == ''")
    browser.click("#batch-button")
    browser.wait_for("!!document.querySelector('#files input[type=file]')")
    browser.upload("#files input[type=file]", tmp_path / "big.png")
    browser.wait_for(f"document.querySelector('#batch_status textarea').value == {too_large!r}")


@in_chromium
def test_a_tiff_is_shown_and_restored_from_its_own_pixels(browser: Browser, tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "scan.tif", np.full((48, 64, 3), 40000, dtype=np.uint16))
    _upload(browser, tmp_path / "scan.tif")
    browser.wait_for("document.querySelector('#upload img').naturalWidth == 64")
    _set(browser, "Strength", "0")
    _restore(browser)
    link = browser.evaluate("document.querySelector('#download a[href]').href")
    (tmp_path / "back.png").write_bytes(_opened(link))
    back = read_photo(tmp_path / "back.png")
    assert back.bits == 16 and (back.rgb * 65535).round().unique().tolist() == [40000]


@in_chromium
def test_cancel_stops_the_run_and_the_next_one_goes_through(browser: Browser, photo: Path) -> None:
    _upload(browser, photo)
    _open_sampling(browser)
    _set(browser, "Steps", "200")
    browser.click("#restore")
    browser.wait_for(f"/sampling, step .* left$/.test(document.querySelector({STATUS!r}).value)")
    labels = browser.evaluate("[...document.querySelectorAll('button')].map(b => b.ariaLabel)")
    assert "Remove Image" in labels and "Share" not in labels  # which would send the preview away
    browser.click("#cancel")
    browser.wait_for(f"document.querySelector({STATUS!r}).value == 'cancelled'")
    assert browser.evaluate("document.querySelectorAll('#viewer img').length") == 0
    _set(browser, "Steps", "2")
    _restore(browser)


@pytest.mark.slow  # the server notices after seconds
@in_chromium
def test_leaving_the_page_ends_its_run(
    browser: Browser, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[object] = []
    monkeypatch.setattr(Studio, "save", lambda *given: saved.append(given))
    _upload(browser, photo)
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
    _upload(browser, tmp_path / "one.png")
    browser.click("#describe")
    browser.wait_for(f"document.querySelector({CAPTION!r}).value.startsWith('something ')")
    browser.type(CAPTION, "a tomato")
    browser.click("#restore")
    browser.wait_for("document.querySelector('#history').innerText.includes('a tomato')")
    _is_ready(browser)
    browser.click("#upload button[aria-label='Remove Image']")
    browser.wait_for(f"document.querySelector({CAPTION!r}).value == ''")
    _upload(browser, tmp_path / "two.png")
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
    photo.with_suffix(".txt").write_text("a red boat")
    browser.click("#batch-button")
    browser.wait_for("!!document.querySelector('#files input[type=file]')")
    browser.upload(
        "#files input[type=file]", photo, photo.with_suffix(".txt"), tmp_path / "bad.png"
    )
    browser.wait_for("document.querySelector('#captions').innerText.includes('a red boat')")
    browser.click("#restore_all")
    browser.wait_for("document.querySelector('#report').innerText.includes('cannot be read')")
    browser.wait_for(
        "document.querySelector('#batch_status textarea').value.startsWith('done, 1 of 2')"
    )
    browser.wait_for("document.querySelector('#report').innerText.includes('restored')")
    link = browser.wait_for("document.querySelector('#packed a[href]')?.href")
    with zipfile.ZipFile(io.BytesIO(_opened(link))) as archive:
        assert set(archive.namelist()) == {"photo.png", "photo.png.json"}
        assert json.loads(archive.read("photo.png.json"))["caption"] == "a red boat"


def _coffee(width: int, height: int) -> Image.Image:
    from skimage import data

    side = min(width, height)
    part = data.coffee()[100 : 100 + 192 * height // side, 150 : 150 + 192 * width // side]
    return Image.fromarray(part).resize((width, height))


def _upload(browser: Browser, path: Path) -> None:
    browser.upload("#upload input[type=file]", path)
    browser.wait_for("document.querySelector('#plan').innerText.startsWith('Input')")


def _still(browser: Browser, box: dict[str, float], path: Path) -> np.ndarray:
    """Return a screenshot of a box (H, W, 3) once three in a row are the same."""
    shots: list[np.ndarray] = []

    def stands() -> bool:
        browser.screenshot(path, box)
        with Image.open(path) as shot:
            shots.append(np.asarray(shot.convert("RGB")).astype(int))
        return len(shots) > 2 and all(np.array_equal(shots[-1], old) for old in shots[-3:-1])

    wait_for(stands, what="a picture that stands still")
    return shots[-1]


def _is_ready(browser: Browser) -> None:
    browser.wait_for("!document.querySelector('#restore').disabled")


def _restore(browser: Browser) -> None:
    """Press the button, and wait until the result is there and the button ready again."""
    _is_ready(browser)
    results = "document.querySelectorAll('#history [data-index]').length"
    before = browser.evaluate(results)
    browser.evaluate("document.querySelector('#restore').click()")
    browser.wait_for(f"{results} > {before}")
    browser.wait_for(f"document.querySelector({STATUS!r}).value.startsWith('done')")
    _is_ready(browser)


def _seed_of_the_download(browser: Browser) -> int:
    link = browser.evaluate("document.querySelector('#download a[href]').href")
    with Image.open(io.BytesIO(_opened(link))) as image:
        assert image.size == (128, 96)
        return json.loads(image.info["restoration"])["options"]["seed"]


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
