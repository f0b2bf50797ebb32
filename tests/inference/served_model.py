"""A server with OpenAI's chat interface on loopback, answering with a real model."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image

from src.inference.captioner_local import LocalCaptioner


class ServedModel:
    """Answers chat completions with one image; counts the questions."""

    def __init__(self, captioner: LocalCaptioner) -> None:
        self.asked = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if self.path != "/v1/chat/completions":
                    self.send_error(404)
                    return
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                parts = body["messages"][0]["content"]
                (url,) = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
                data = base64.b64decode(url.partition("base64,")[2], validate=True)
                pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
                owner.asked += 1
                text = captioner(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                answer = {"id": "1", "object": "chat.completion", "model": body["model"],
                          "choices": [choice]}  # fmt: skip
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
