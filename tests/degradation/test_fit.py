"""Fitting ranges: the search on numbers that are known exactly, and the command on files."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from PIL import Image

from open_supir.commands.fit_degradation import main
from open_supir.commands.train import train
from open_supir.degradation.fit import jpeg_range
from open_supir.degradation.fit_bank import MID_GREY_LEVELS, Bank
from open_supir.degradation.fit_crops import CleanPictures, read_photographs
from open_supir.degradation.fit_ranges import SEARCHED, WIDEST, Ranges
from open_supir.degradation.fit_search import Distance, search, weigh
from tests.integration.conftest import Compose, workplace  # noqa: F401 - fixtures
from tests.integration.test_plugins import composed_with

from .samples import photo

TRUTH = Ranges(
    blur=(0.5, 2.0), down=(0.4, 0.8), sigma=(5.0, 20.0), poisson=(0.3, 1.5), jpeg=(50.0, 90.0),
    gaussian_prob=0.7, gray_prob=0.3, jpeg_prob=1.0,
)  # fmt: skip


def exact_bank(count: int) -> Bank:
    """Return a bank whose measurements are the parameters themselves."""
    rng = np.random.default_rng(0)
    drawn = {name: np.exp(rng.uniform(*np.log(getattr(WIDEST, name)), count)) for name in SEARCHED}
    gaussian = rng.random(count) < 0.5
    bank = Bank(
        blur=drawn["blur"], down=drawn["down"],
        strength=np.where(gaussian, drawn["sigma"], drawn["poisson"]),
        is_gaussian=gaussian, is_gray=rng.random(count) < 0.5, measured=np.zeros((count, 0)),
        prior=WIDEST,
    )  # fmt: skip
    return dataclasses.replace(bank, measured=bank.targets())


def exact_photographs(count: int) -> np.ndarray:
    """Return the parameters of photographs that TRUTH draws, as `Bank.targets` does."""
    rng = np.random.default_rng(1)
    blur, down = rng.uniform(*TRUTH.blur, count), rng.uniform(*TRUTH.down, count)
    gaussian = rng.random(count) < TRUTH.gaussian_prob
    poisson = rng.uniform(*TRUTH.poisson, count) * MID_GREY_LEVELS
    noise = np.where(gaussian, rng.uniform(*TRUTH.sigma, count), poisson)
    gray = rng.random(count) < TRUTH.gray_prob
    return np.stack([*np.log([blur, down, noise]), gaussian, gray], 1)


def test_weights_turn_the_bank_into_the_ranges() -> None:
    """Weighted means are those of uniform distributions; 60,000 images, about 600 effective."""
    bank = exact_bank(60_000)
    weights = weigh(bank, TRUTH)
    mean = weights / weights.sum()
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert effective > 500
    for name, values in (("blur", bank.blur), ("down", bank.down)):
        low, high = getattr(TRUTH, name)
        error = (high - low) / 12**0.5 / effective**0.5
        assert mean @ values == pytest.approx((low + high) / 2, abs=4 * error)
    assert mean @ bank.is_gaussian == pytest.approx(0.7, abs=0.08)
    assert mean @ bank.is_gray == pytest.approx(0.3, abs=0.08)


def test_search_finds_ranges_of_exact_measurements() -> None:
    """Of 400 photographs, 120 of them with Poisson noise: ends within 15 % of the range's width."""
    bank, given = exact_bank(3000), exact_photographs(400)
    nothing = np.zeros((len(bank.blur), 0)), np.zeros((len(given), 0))
    distance = Distance(bank, bank.targets(), nothing[0], given, nothing[1], seed=0)
    found = search(distance, jpeg=TRUTH.jpeg, jpeg_prob=1.0, seed=0, rounds=120)
    assert distance(found) < 1.5 * distance(TRUTH)
    for name in SEARCHED:
        low, high = getattr(TRUTH, name)
        wanted = pytest.approx((low, high), abs=0.15 * (high - low))
        assert getattr(found, name) == wanted, name
    assert found.gaussian_prob == pytest.approx(0.7, abs=0.1)
    assert distance(dataclasses.replace(TRUTH, blur=(3.99, 4.0))) == float("inf")  # too few left


def test_the_ends_of_qualities_are_those_of_a_uniform_distribution() -> None:
    even = np.linspace(40.0, 80.0, 1001)
    ends, share = jpeg_range(even)
    assert ends == pytest.approx((40, 80), abs=0.1) and share == 1
    ends, share = jpeg_range(np.concatenate([even, np.full(20, 10.0), np.full(1021, 100.0)]))
    assert ends[0] == pytest.approx(39, abs=1.5) and share == pytest.approx(0.5)  # odd files
    assert jpeg_range(np.full(9, 100.0)) == ((90.0, 95.0), 0.0)


def test_a_preset_file_builds_what_was_found(tmp_path: Path) -> None:
    text = TRUTH.preset(["One line."])
    assert text.startswith("# One line.\n") and text.isascii()
    built = instantiate(yaml.safe_load(text))
    assert built.config == TRUTH.config()
    lq = built(torch.zeros(2, 3, 64, 64), torch.arange(2))
    assert lq.shape == (2, 3, 64, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return 12 photographs of JPEG quality 60, one that is too small, and one that is broken."""
    source = tmp_path / "photographs"
    source.mkdir()
    for number in range(12):
        name = ("coffee.png", "astronaut.png", "chelsea.png")[number % 3]
        image = photo(name, 160, 160, top=10 * number, left=15 * number)[0]
        image = image + 10 / 255 * torch.randn(1, 160, 160)
        picture = Image.fromarray((image * 255).clamp(0, 255).byte().permute(1, 2, 0).numpy())
        picture.save(source / f"{number:02d}.jpg", quality=60)
    Image.new("RGB", (50, 200)).save(source / "small.png")
    (source / "broken.png").write_bytes(b"not an image")
    return source


def test_bad_and_small_photographs_are_counted_and_qualities_read(folder: Path) -> None:
    picture = Image.open(folder / "00.jpg")
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    (folder / "again.png").write_bytes(stream.getvalue())
    paths = sorted(folder.iterdir())
    read = read_photographs(paths, side=128, seed=0, max_pixels=10**6)
    assert read.crops.shape == (13, 3, 128, 128) and set(read.quality.tolist()) == {60.0}
    assert read.sources == {"quantisation tables of the file": 12, "pixels": 1}
    assert read.skipped == {"cannot be read": 1, "smaller than 128 pixels": 1}
    with pytest.raises(ValueError, match="none of 14 .* 13 smaller than 512 pixels, 1 cannot"):
        read_photographs([p for p in paths if p.name != "00.jpg"], side=512, seed=0,
                         max_pixels=10**6)  # fmt: skip
    with pytest.raises(ValueError, match="clean: no picture of at least 128"):
        CleanPictures([folder / "small.png"], side=128, max_pixels=10**6)


@pytest.fixture
def fitted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of options with the preset `mine`, made by the command in miniature."""
    output = tmp_path / "options/degradation/mine.yaml"
    words = [f"input={folder}", f"output={output}", "fit.images=100", "fit.resamples=2",
             "fit.compared=20"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["fit_degradation", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # a command sets it; put back afterwards
    main()
    return tmp_path / "options"


def test_command_writes_a_preset_that_trains(
    fitted: Path,
    workplace: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page stands beside it; nothing is replaced unasked; two steps of stage 2."""
    output, page = fitted / "degradation/mine.yaml", fitted / "degradation/mine.html"
    assert sorted(output.parent.iterdir()) == [page, output]
    config = yaml.safe_load(output.read_text())["config"]
    assert config["second"]["jpeg"] == [60.0, 60.0] and config["second"]["jpeg_prob"] == 1
    html = page.read_text()
    for words in (
        "12 photographs",
        "left out: 1 smaller than 128 pixels",
        "<th>supir_<wbr>q: W</th>",
        "mine,<wbr> fitted: KS p",
        "Blur and reduction both take fine detail",
    ):
        assert words in html, words
    assert html.count("<img") == 8 * 3 and 'src="http' not in html
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    with pytest.raises(SystemExit, match="mine.yaml exists; .*overwrite=true"):
        main()

    places = [f"runs_dir={tmp_path}", f"run_dir={tmp_path}/run", f"data.root={workplace}/shards",
              f"weights.sdxl={workplace}/prior.safetensors",
              f"weights.shipped={workplace}/robust.safetensors", "data.num_workers=0",
              "data.global_batch=4", "data.val_size=2", "data.val_batch=2", "sampler.num_steps=1",
              "trainer.accelerator=cpu", "debug=quick", "val_every=2", "max_steps=2"]  # fmt: skip
    train(composed_with(fitted, "train", ["experiment=zerosft", *places, "degradation=mine"]))
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["degradation"]
    assert saved["config"] == config and (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_mistakes_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        (["output=mine"], "a preset's file ends in .yaml"),
        (["output=mine.yaml", "fit.images=5"], "fit.images must be at least 100, got 5"),
        (["output=mine.yaml", "side=8"], "side=8: crops need at least 64 pixels"),
        (["output=mine.yaml", f"input={folder / '00.jpg'}"], "1 photographs; .* at least 8"),
    ):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # a command sets it
        monkeypatch.setattr("sys.argv", ["fit_degradation", f"input={folder}", *words])
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit, match=said):
            main()
