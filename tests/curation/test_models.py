"""Captions and negative samples by real networks: a tiny LLaVA, and the tiny prior that ships."""

import functools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from open_supir.commands.curate import curate
from open_supir.curation.measures import measure
from open_supir.curation.sources import InputSettings
from open_supir.curation.steps import CaptionStep, ScoreStep
from open_supir.curation.thresholds import Thresholds
from open_supir.curation.work import Blueprint
from open_supir.data.demo import load_photo
from open_supir.data.samples import ImageLimits, decode_training_image
from open_supir.evaluation.scorers import build_scorer
from open_supir.inference.captioner_server import ServerCaptioner
from tests.curation.test_pipeline import run, shards
from tests.data.made import jpeg
from tests.inference.loopback import Loopback
from tests.test_configs import CONF, ROOT
from tests.waiting import PATIENCE

LIMITS = ImageLimits(min_side=8)


def _photos(folder: Path) -> Path:
    folder.mkdir()
    for number, name in enumerate(("coffee.png", "chelsea.png")):
        load_photo(name).crop((20, 20, 148, 148)).save(folder / f"{number}.png")
    return folder


def test_tiny_prior_makes_negatives_out_of_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command's configuration: strength 0.5, the same picture from the same key."""
    monkeypatch.chdir(ROOT)
    _photos(tmp_path / "in")
    made = []
    for name in ("one", "two"):
        overrides = [f"input={tmp_path / 'in'}", f"output={tmp_path / name}", "filter.size=128",
                     "negatives.count=2", "runner.num_workers=0", "prior.device=cpu",
                     "prior.settings.num_steps=6", "thresholds.bounds={}"]  # fmt: skip
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("curate", overrides=overrides)
        curate(cfg)
        made.append(shards(tmp_path / name, "negative"))
    assert [s.image for s in made[0]] == [s.image for s in made[1]]
    positives = {s.key: s for s in shards(tmp_path / "one", "positive")}
    for sample in made[0]:
        meta = json.loads(sample.meta)
        assert sample.text.decode() == cfg.negatives.words and meta["is_negative"] is True
        before, after = (
            decode_training_image(image, LIMITS).astype(float) / 255
            for image in (positives[meta["of"]].image, sample.image)
        )
        assert after.shape == before.shape
        # half way up the noise the picture is still that picture, and no longer the same one
        likeness = np.corrcoef(before.ravel(), after.ravel())[0, 1]
        assert 0.5 < likeness < 0.995


def test_missing_prior_and_missing_metric_weights_end_the_run_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _photos(tmp_path / "in")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))

    def start(*more: str) -> None:
        base = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "filter.size=128",
                "runner.num_workers=0", "thresholds.bounds={}"]  # fmt: skip
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("curate", overrides=[*base, *more])
        curate(cfg)

    with pytest.raises(Exception, match="step negatives: .*nowhere.safetensors"):
        start("negatives.count=1", "prior.path=nowhere.safetensors")
    with pytest.raises(Exception, match="step score: .*musiq"):
        start("score.metrics=[musiq]")
    with pytest.raises(Exception, match="step score: .*psnr.*needs a reference"):
        start("score.metrics=[psnr]")
    with pytest.raises(Exception, match="step score: .*unknown metric 'beauty'"):
        start("score.metrics=[beauty]")


def test_metric_of_the_table_scores_images() -> None:
    """`sharpness` of the evaluation's table is the filter's own measure, in 8-bit units."""
    scorer = build_scorer(["sharpness"], "cpu")
    image = load_photo("coffee.png").crop((0, 0, 128, 128))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    own = measure(np.array(image))["sharpness"]
    assert scorer(pixels)["sharpness"] == pytest.approx(own, rel=0.02)  # Pillow's luma is rounded


def test_score_that_hides_a_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="score.metrics.*sharpness.*filter"):
        ScoreStep(metrics=("sharpness",), scorer=Blueprint({}, dict))


def test_server_is_asked_three_at_a_time_and_again_after_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on loopback that answers nobody until three are waiting, and refuses the first."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("open_supir.inference.captioner_server.sleep", lambda seconds: None)
    lock, three = threading.Lock(), threading.Event()
    waiting, most, asked = 0, 0, 0

    def answer(path: str, headers: dict, body: dict) -> tuple:
        nonlocal waiting, most, asked
        with lock:
            waiting, asked = waiting + 1, asked + 1
            most, number = max(most, waiting), asked
        if waiting >= 3:
            three.set()
        assert three.wait(PATIENCE)
        with lock:
            waiting -= 1
        message = {"role": "assistant", "content": f"answer {number}"}
        content = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        return (503 if number == 1 else 200), {"Content-Type": "application/json"}, content

    server = Loopback(answer)
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(jpeg(number, 64, 64))
    build = functools.partial(ServerCaptioner, server.url, "m")
    caption = CaptionStep(
        captioner=Blueprint({"model": "m"}, build), cache=str(tmp_path / "cache"), concurrency=3
    )
    try:
        unit = InputSettings(paths={"in": str(tmp_path / "in")})
        run(tmp_path / "in", tmp_path / "out", caption=caption, num_negatives=0, input=unit)
    finally:
        server.close()
    texts = {s.text.decode() for s in shards(tmp_path / "out", "positive")}
    assert texts == {f"answer {number}" for number in range(2, 11)}
    assert most == 3 and asked == 10


def test_a_real_llava_captions_what_it_sees(tmp_path: Path) -> None:
    """Built and fitted offline to three colours; asked through the pipeline, quarters too."""
    pytest.importorskip("transformers")
    from open_supir.inference.captioner_local import LocalCaptioner
    from tests.inference.tiny_llava import CAPTIONS, write_fitted_llava

    write_fitted_llava(tmp_path / "llava")
    (tmp_path / "in").mkdir()
    for number, colour in enumerate(CAPTIONS):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "in" / f"{number}.png")
    blueprint = Blueprint(
        {"model": "tiny"},
        functools.partial(LocalCaptioner, str(tmp_path / "llava"), max_tokens=8),
    )
    caption = CaptionStep(captioner=blueprint, cache=str(tmp_path / "cache"), quadrants=True)
    run(tmp_path / "in", tmp_path / "out", caption=caption, num_negatives=0, dedup=None,
        thresholds=Thresholds(), steps=("filter", "select", "caption", "shards"))  # fmt: skip
    samples = shards(tmp_path / "out", "positive")
    assert sorted(s.text.decode() for s in samples) == sorted(CAPTIONS.values())
    for sample in samples:
        assert set(json.loads(sample.meta)["captions"].values()) == {sample.text.decode()}
