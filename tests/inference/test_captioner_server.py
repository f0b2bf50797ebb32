"""The client over real sockets, against a loopback server that answers well and badly."""

import base64
import io
import json
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from open_supir.inference.captioner_server import CaptionError, ServerCaptioner, data_url
from tests.inference.loopback import Answer, Loopback

IMAGE = torch.full((3, 40, 60), 0.25)


def _completion(text: object) -> Answer:
    content = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(content).encode()


class Server(Loopback):
    """Gives its answers in order, the last one again and again; remembers the requests."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], dict]] = []
        super().__init__(self.next)

    def next(self, *request) -> Answer:
        self.requests.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of waits, none of which takes place."""
    waits: list[float] = []
    monkeypatch.setattr("open_supir.inference.captioner_server.sleep", waits.append)
    return waits


def _captioner(server: Server, **options) -> ServerCaptioner:
    return ServerCaptioner(server.url, "tiny", **options)


def test_caption_comes_back_in_one_line(server: Server) -> None:
    server.answers = [_completion(" A cat,\n\tasleep.\x07 ")]
    assert _captioner(server)(IMAGE) == "A cat, asleep."
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "tiny"
    assert "Authorization" not in headers


def test_image_is_sent_reduced_and_faithful() -> None:
    content = base64.b64decode(data_url(torch.full((3, 40, 200), 0.25), 100).partition(",")[2])
    image = Image.open(io.BytesIO(content))
    assert image.size == (100, 20)
    assert image.convert("RGB").getpixel((50, 10)) == pytest.approx((64, 64, 64), abs=2)


def test_key_is_read_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [_completion("a cat")]
    monkeypatch.setenv("MY_KEY", "secret")
    _captioner(server, key_variable="MY_KEY")(IMAGE)
    assert server.requests[0][1]["Authorization"] == "Bearer secret"


def test_key_does_not_cross_a_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(CaptionError, match="unencrypted") as caught:
        ServerCaptioner("http://192.0.2.1/v1", "tiny")(IMAGE)
    assert "secret" not in str(caught.value)


def test_passing_failures_are_tried_again_with_growing_waits(
    server: Server, waits: list[float]
) -> None:
    busy: Answer = (503, {}, b"")
    server.answers = [busy, (429, {"Retry-After": "7"}, b""), busy, _completion("a cat")]
    assert _captioner(server)(IMAGE) == "a cat"
    assert waits == [1.0, 7.0, 4.0]


def test_a_server_that_stays_busy_is_given_up(server: Server) -> None:
    server.answers = [(503, {}, b"")]
    with pytest.raises(CaptionError, match="status 503 after 3 attempts"):
        _captioner(server, retries=2)(IMAGE)
    assert len(server.requests) == 3


def test_lasting_failures_are_not_tried_again(server: Server) -> None:
    server.answers = [(401, {}, b'{"error": "bad\nkey"}')]
    with pytest.raises(CaptionError, match='status 401: {"error": "bad key"}'):
        _captioner(server)(IMAGE)
    assert len(server.requests) == 1


def test_redirects_are_not_followed(server: Server) -> None:
    server.answers = [(307, {"Location": server.url + "/elsewhere"}, b""), _completion("a cat")]
    with pytest.raises(CaptionError, match="status 307"):
        _captioner(server)(IMAGE)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer, message",
    [
        (_completion("x" * (1 << 20)), "above"),
        ((200, {}, b"not json"), "not a chat completion"),
        ((200, {}, b'{"choices": []}'), "not a chat completion"),
        (_completion(None), "no text"),
    ],
)
def test_answers_of_another_form_are_refused(server: Server, answer: Answer, message: str) -> None:
    server.answers = [answer]
    with pytest.raises(CaptionError, match=message):
        _captioner(server)(IMAGE)


def test_a_server_that_is_not_there_is_named(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(CaptionError, match="127.0.0.1.*after 2 attempts"):
        _captioner(server, retries=1, timeout_s=2.0)(IMAGE)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://user:pass@host/v1", "localhost:80"])
def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="http") as caught:
        ServerCaptioner(url, "tiny")
    assert "pass@" not in str(caught.value)
