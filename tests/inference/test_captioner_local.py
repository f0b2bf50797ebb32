"""Captioners with a tiny LLaVA, built and fitted offline: in this process and behind a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from open_supir.inference.caption_cache import CachedCaptioner
from open_supir.inference.captioner import QUESTION
from open_supir.inference.captioner_local import LocalCaptioner
from open_supir.inference.captioner_server import ServerCaptioner
from tests.inference.served_model import ServedModel
from tests.inference.tiny_llava import CAPTIONS, write_fitted_llava

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llava")
    write_fitted_llava(folder)
    return str(folder)


def _flat(colour: tuple[int, int, int]) -> torch.Tensor:
    return (torch.tensor(colour) / 255)[:, None, None].expand(3, 40, 60)


@pytest.mark.parametrize("colour", CAPTIONS)
def test_local_model_says_what_it_sees(model: str, colour: tuple[int, int, int]) -> None:
    assert LocalCaptioner(model, max_tokens=8)(_flat(colour)) == CAPTIONS[colour]


@pytest.fixture
def served(model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ServedModel(LocalCaptioner(model, max_tokens=8))
    yield server
    server.close()


@pytest.mark.parametrize("colour", CAPTIONS)
def test_the_same_model_behind_a_server_says_the_same(
    served: ServedModel, colour: tuple[int, int, int]
) -> None:
    """Through the wire: chat completion, image as a data URL, JPEG at quality 95."""
    assert ServerCaptioner(served.url, "tiny")(_flat(colour)) == CAPTIONS[colour]


def test_captions_are_asked_once_by_image_model_and_question(
    served: ServedModel, tmp_path: Path
) -> None:
    red, blue = (_flat(colour) for colour in list(CAPTIONS)[:2])
    for _ in range(2):
        captioner = CachedCaptioner(ServerCaptioner(served.url, "tiny"), tmp_path / "cache")
        assert captioner(red) == "a red chair" and captioner(blue) == "water at night"
    assert served.asked == 2
    CachedCaptioner(ServerCaptioner(served.url, "other"), tmp_path / "cache")(red)
    CachedCaptioner(
        ServerCaptioner(served.url, "tiny", question="What is it?"), tmp_path / "cache"
    )(red)
    assert served.asked == 4
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"{")  # damaged: asked again
    captioner(red)
    assert served.asked == 5


def test_local_model_answers_the_same_words_each_time_and_none_of_the_prompt(model: str) -> None:
    captioner = LocalCaptioner(model, max_tokens=5)
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    caption = captioner(image)
    assert caption and caption == captioner(image)
    assert len(caption.split()) <= 5 and "\n" not in caption
    assert QUESTION not in caption and "<image>" not in caption.split()


def test_image_and_question_reach_the_model(model: str) -> None:
    captioner = LocalCaptioner(model, max_tokens=1)
    seen: list[dict] = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **inputs: seen.append(inputs) or generate(**inputs)
    captioner(torch.zeros(3, 40, 60))
    captioner(torch.ones(3, 40, 60))
    assert seen[0]["pixel_values"].mean() < 0 < seen[1]["pixel_values"].mean()
    words = captioner.processor.batch_decode(seen[0]["input_ids"])[0]
    assert words.count("<image>") == 4  # one a patch: 32 pixels in patches of 16
    assert QUESTION in words


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        LocalCaptioner(str(tmp_path / "nowhere"))
