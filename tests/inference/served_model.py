"""A server with OpenAI's chat interface on loopback, answering with a real model."""

import base64
import io
import json

import numpy as np
import torch
from PIL import Image

from open_supir.inference.captioner_local import LocalCaptioner
from tests.inference.loopback import Answer, Loopback


class ServedModel(Loopback):
    """Answers chat completions with one image; counts the questions."""

    def __init__(self, captioner: LocalCaptioner) -> None:
        self.asked = 0
        self.captioner = captioner
        super().__init__(self.answer)

    def answer(self, path: str, headers: dict[str, str], body: dict) -> Answer:
        if path != "/v1/chat/completions":
            return 404, {}, b"{}"
        self.asked += 1
        parts = body["messages"][0]["content"]
        (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        data = base64.b64decode(url.partition("base64,")[2], validate=True)
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
        text = self.captioner(pixels.permute(2, 0, 1).float() / 255)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "model": body["model"]}
        content = json.dumps(answer | {"choices": [choice]}).encode()
        return 200, {"Content-Type": "application/json"}, content
