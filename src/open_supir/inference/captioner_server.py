"""Captions from a server with an OpenAI-compatible chat API (vLLM, llama.cpp, Ollama, ...)."""

import base64
import io
import json
import logging
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from torch import Tensor

from open_supir.base.images import resize, to_uint8
from open_supir.base.images.captions import one_line
from open_supir.inference.captioner import QUESTION

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 1 << 20
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
MAX_WAIT_S = 30.0


class CaptionError(RuntimeError):
    """The server returned no caption; the one-line message says why."""


class ServerCaptioner:
    """Asks a vision model on an OpenAI-compatible server.

    Redirects are not followed, the size of answers is limited, and transient failures are retried
    after 1, 2, 4, ... seconds.

    Args:
        url: Base URL of the server, such as http://localhost:8000/v1.
        key_variable: Environment variable with the API key, read at each call so that the key never
            reaches a configuration or a log; if unset, no key is sent.
        retries: Attempts after the first.
        max_side: Images with a longer side are reduced before sending.

    Raises:
        ValueError: `url` is not http or https, or contains a user name or password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        question: str = QUESTION,
        key_variable: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        retries: int = 3,
        max_tokens: int = 256,
        max_side: int = 1024,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(
                "captioner url must be http(s)://host[:port]/path without user name or password, "
                f"got scheme {parts.scheme!r} and host {parts.hostname!r}"
            )
        self.endpoint = url.rstrip("/") + "/chat/completions"
        self.host = parts.hostname
        self.private = parts.scheme == "https" or _is_loopback(parts.hostname)
        self.model = model
        self.identity = f"server {self.endpoint} {model} {max_tokens} {question}"
        self.question = question
        self.key_variable = key_variable
        self.timeout_s = timeout_s
        self.retries = retries
        self.max_tokens = max_tokens
        self.max_side = max_side

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return the model's description of `image` (3, H, W) in [0, 1], as one line.

        Raises:
            CaptionError: The server does not answer, refuses, or returns an invalid answer.
        """
        body = json.dumps(self._question(image)).encode()
        for attempt in range(self.retries + 1):
            try:
                return one_line(_content(self._post(body)))
            except _Passing as failure:
                if attempt == self.retries:
                    raise CaptionError(
                        f"captioner at {self.host}: {failure} after {attempt + 1} attempts"
                    ) from failure
                wait = min(max(failure.wait_s, 2.0**attempt), MAX_WAIT_S)
                log.warning("captioner at %s: %s; retrying in %.0f s", self.host, failure, wait)
                sleep(wait)
        raise AssertionError("unreachable")

    def _question(self, image: Tensor) -> dict[str, Any]:
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": self.question},
                        {"type": "image_url", "image_url": {"url": data_url(image, self.max_side)}},
                    ],
                }
            ],
        }

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            if not self.private:
                raise CaptionError(
                    f"captioner at {self.host}: {self.key_variable} is set, and would cross the "
                    "network unencrypted; use https, or unset it"
                )
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.endpoint, data=body, headers=headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.timeout_s) as response:
                content = response.read(MAX_RESPONSE_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in RETRIED_STATUS:
                    raise _Passing(f"status {error.code}", _retry_after(error)) from error
                detail = one_line(error.read(300).decode("utf-8", "replace"))
            raise CaptionError(
                f"captioner at {self.host}: status {error.code}: {detail}"
            ) from error
        except (OSError, HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Passing(str(error) or type(error).__name__) from error
        if len(content) > MAX_RESPONSE_BYTES:
            raise CaptionError(f"captioner at {self.host}: answer above {MAX_RESPONSE_BYTES} bytes")
        return content


class _Passing(Exception):
    """A transient failure, worth a retry."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Rejects redirects: they could send key and image to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def data_url(image: Tensor, max_side: int) -> str:
    """Return `image` (3, H, W) in [0, 1], reduced to `max_side`, as a JPEG in a data URL."""
    height, width = image.shape[-2:]
    scale = min(1.0, max_side / max(height, width))
    small = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    pixels = to_uint8(small).cpu().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _content(answer: bytes) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CaptionError("captioner: the answer is not a chat completion") from error
    if not isinstance(content, str):
        raise CaptionError("captioner: the answer contains no text")
    return content


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = (error.headers.get("Retry-After") or "").strip()
    return float(value) if value.isdecimal() else 0.0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
