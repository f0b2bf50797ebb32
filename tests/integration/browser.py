"""Drives a headless Chromium over its debugging pipe: enough to click through a page."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE, wait_for

CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)


class Browser:
    """One tab. Commands are answered in order; events are passed over."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 1400) -> None:
        assert CHROMIUM is not None
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()

        def connect() -> None:  # the browser reads from descriptor 3 and writes to 4
            os.dup2(theirs_in, 103)
            os.dup2(theirs_out, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-proxy-server",
             f"--window-size={width},{height}", "about:blank"],
            preexec_fn=connect, close_fds=False, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.numbers, self.session = b"", itertools.count(1), None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.back)

    def call(self, method: str, **params: Any) -> Any:
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                self.buffer += self._read()
            line, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> bytes:
        ready, _, _ = select.select([self.back], [], [], PATIENCE)
        content = os.read(self.back, 1 << 16) if ready else b""
        assert content, f"the browser has {'ended' if ready else 'not answered'}"
        return content

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, script: str) -> Any:
        return wait_for(lambda: self.evaluate(script), what=script)

    def upload(self, selector: str, *paths: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def open(self, url: str) -> None:
        """Load a page anew: another session."""
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def click(self, selector: str) -> None:
        self.wait_for(f"!!document.querySelector({selector!r})")
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def type(self, selector: str, text: str) -> None:
        """Give an input a value, as typing does: the page hears of it."""
        self.evaluate(
            f"""(() => {{
                const field = document.querySelector({selector!r});
                const kind = Object.getPrototypeOf(field);
                Object.getOwnPropertyDescriptor(kind, "value").set.call(field, {text!r});
                for (const name of ["input", "change", "blur"])
                    field.dispatchEvent(new Event(name, {{bubbles: true}}));
            }})()"""
        )

    def value(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({selector!r}).value")

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the window's size; without scroll bars, which would move things in screenshots."""
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip

    def box(self, selector: str) -> dict[str, float]:
        """Return x, y, width, height of an element, in pixels of the whole page."""
        return self.evaluate(
            f"""(() => {{
                const {{x, y, width, height}} =
                    document.querySelector({selector!r}).getBoundingClientRect();
                return {{x: x + scrollX, y: y + scrollY, width, height}};
            }})()"""
        )

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse over an element that is in view, between shares of its sides."""
        box = self.box(selector)
        scrolled = self.evaluate("[scrollX, scrollY]")

        def mouse(kind: str, share: float, buttons: int) -> None:
            x, y = (
                box[at] - away + box[side] * (a + share * (b - a))
                for at, away, side, a, b in zip(
                    "xy", scrolled, ("width", "height"), start, end, strict=True
                )
            )
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1,
            )  # fmt: skip

        mouse("mouseMoved", 0, 0)
        mouse("mousePressed", 0, 1)
        for step in range(1, 11):
            mouse("mouseMoved", step / 10, 1)
        mouse("mouseReleased", 1, 0)

    def screenshot(self, path: Path, clip: dict[str, float] | None = None) -> None:
        """Write what is seen, or a part of the page, as PNG."""
        part = {} if clip is None else {"clip": clip | {"scale": 1}, "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", format="png", **part)["data"]
        path.write_bytes(base64.b64decode(data))
