"""A headless Chromium, driven through its own debugging protocol over two pipes: no driver program, no package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio", "--force-color-profile=srgb",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next((place for place in PLACES if Path(place).exists()), None) or shutil.which("chromium")


class Browser:
    """One page. ``size``: width and height in CSS pixels; ``touch``: as a phone. Close it: it is a process."""

    def __init__(
        self, size: tuple[int, int] = (1100, 900), *, touch: bool = False, scale: float = 1.0, dark: bool = False
    ):
        program = chromium()
        assert program is not None
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()

        def pipes() -> None:  # the protocol is spoken on 3 and 4; both are moved aside first, they may be each other's
            incoming, outgoing = os.dup(to_browser), os.dup(from_browser)
            incoming, outgoing = (os.dup2(old, new) for old, new in ((incoming, 30), (outgoing, 31)))
            os.dup2(incoming, 3)
            os.dup2(outgoing, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._folder}", "about:blank"], preexec_fn=pipes, close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in, self._buffer = from_us, to_us, b""
        self._count, self._session = itertools.count(1), ""
        self.messages: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=media)
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch
        )

    def call(self, method: str, /, *, seconds: float = 60, **params: Any) -> Any:
        """One call of the protocol."""
        number = next(self._count)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + seconds
        while True:
            answer = self._read(until)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self, until: float) -> Any:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        """Keep what the page complains of."""
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.messages.append(params["entry"]["text"])

    def open(self, address: str) -> None:
        """Load a page and wait until its script has run."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression on the page (a promise is waited for)."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"not within {seconds} s: {condition}; the page says: {self.messages}"
            time.sleep(0.05)

    def text(self, identifier: str) -> str:
        """What an element shows."""
        return str(self.run(f"document.getElementById({json.dumps(identifier)}).innerText"))

    def click(self, identifier: str) -> None:
        """Click an element."""
        self.run(f"document.getElementById({json.dumps(identifier)}).click()")

    def choose(self, identifier: str, path: Path) -> None:
        """Put a file into a file input."""
        found = self.call("Runtime.evaluate", expression=f"document.getElementById({json.dumps(identifier)})")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def key(self, name: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write the page as PNG, the whole of it or what is in view."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser and remove its folder."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self._folder, ignore_errors=True)
