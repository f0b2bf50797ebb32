"""The evaluation's page and the preference page in a headless Chromium, at both widths."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from open_supir.base.images.write import write_image
from open_supir.evaluation import run_benchmark, write_report
from open_supir.evaluation.preference import run_study
from open_supir.evaluation.samples import Sample
from tests.integration.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
SHOWN = "[...document.querySelectorAll('.pair img.{}')].map(i => i.dataset.m).join()"


@pytest.fixture(params=[400, 1600])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile", width=request.param)
    browser.call("Page.enable")
    size = {"width": request.param, "height": 1400}  # windows themselves are 500 pixels at least
    browser.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
    assert browser.evaluate("innerWidth") == request.param
    yield browser
    browser.close()


def _open(browser: Browser, path: Path) -> None:
    browser.call("Page.navigate", url=path.as_uri())
    browser.wait_for(
        f"location.pathname.endsWith('{path.name}') && document.readyState === 'complete'"
    )


def test_report_fits_its_window_and_compares_what_the_menus_say(
    browser: Browser, tmp_path: Path
) -> None:
    samples = [
        Sample(f"image_{i}", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)) for i in (0, 1)
    ]
    methods = {"lq": lambda s: s.lq, "ours": lambda s: s.hq, "theirs": lambda s: s.lq / 2}
    names = ["psnr", "psnr_y", "ssim", "ssim_y", "sharpness"]
    records = run_benchmark(
        samples, methods, names, out_dir=tmp_path / "eval", run="r", save_images=True
    )
    write_report(records, tmp_path / "eval")
    _open(browser, tmp_path / "eval/report.html")
    assert browser.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )  # tables scroll inside
    assert browser.evaluate(SHOWN.format("left")) == "lq,lq"
    assert browser.evaluate(SHOWN.format("right")) == "theirs,theirs"
    browser.evaluate(
        "const menu = document.querySelectorAll('.menus select')[1]; menu.value = 'hq';"
        "menu.dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate(SHOWN.format("right")) == "hq,hq"
    browser.evaluate(
        "const bar = document.querySelector('.slides input'); bar.value = 25;"
        "bar.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    cut = "getComputedStyle(document.querySelector('.pair img.right')).clipPath"
    assert "25%" in browser.evaluate(cut)
    assert browser.evaluate("document.querySelectorAll('svg use > title').length") == 2 * 2 * 5


def test_preference_page_records_votes(browser: Browser, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for image in ("x", "y", "z"):
            write_image(tmp_path / name / f"{image}.png", torch.rand(3, 16, 16))
    folders = {name: str(tmp_path / name) for name in ("a", "b")}
    study = tmp_path / "study"
    run_study(study, {"folders": folders, "lq": None, "pairs": 3, "repeats": 0, "seed": 0})
    _open(browser, study / "preference.html")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("at('given').hidden")
    browser.evaluate("at('left').click()")
    browser.evaluate("dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert browser.evaluate("at('place').textContent") == "Question 3 of 3, 2 answered"
    browser.evaluate("window.old = true")
    browser.call("Page.reload")
    browser.wait_for("!window.old && document.readyState === 'complete'")
    assert browser.evaluate("at('place').textContent") == "Question 3 of 3, 2 answered"
    browser.evaluate("at('tie').click()")
    answers = json.loads(browser.evaluate("JSON.stringify({study, rater: 'one', answers})"))
    (study / "votes_one.json").write_text(json.dumps(answers))
    assert answers["answers"] == {"0": "left", "1": "right", "2": "tie"}
    text = run_study(study, {"folders": None})
    assert "3 votes of 1 raters" in text and "| a over b |" in text
