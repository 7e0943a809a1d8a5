"""A real HTTP server that speaks the chat protocol of OpenAI and misbehaves on demand, and small clips to ask about."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

GOOD = {"reason": "clues", "audio": "a calm voice", "vision": "a slight smile", "comment": "content, mildly"}


@dataclass(frozen=True)
class Reply:
    """What the server does with one request. ``text``: of the model; ``body``: sent as it is instead.

    ``cut``: bytes after which the connection is closed although more were announced; ``drip``: seconds between bytes;
    ``wait``: seconds before anything is sent.
    """

    text: str = json.dumps(GOOD)
    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 20)
    wait: float = 0.0
    drip: float = 0.0
    cut: int | None = None
    message: dict[str, Any] = field(default_factory=dict)

    def bytes(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        choice = {
            "index": 0,
            "finish_reason": self.finish,
            "message": {"role": "assistant", "content": self.text, **self.message},
        }
        found: dict[str, Any] = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
        }
        if self.usage is not None:
            asked, answered = self.usage
            found["usage"] = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
        return json.dumps(found).encode()


def refusal(status: int, message: str, *, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI's servers send it."""
    body = json.dumps({"error": {"message": message, "type": "x", "code": code}})
    return Reply(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


#: Gets the number of the chat request (from 0) and its body.
Behaviour = Callable[[int, dict[str, Any]], Reply]


class LLMServer:
    """``behaviour`` decides on every chat request; ``models`` on the list of models. What came is in ``requests``."""

    def __init__(self, behaviour: Behaviour | Sequence[Reply] = (), *, models: Reply | None = None) -> None:
        replies = behaviour
        self.behaviour: Behaviour = (
            replies if callable(replies) else lambda n, _: replies[n] if n < len(replies) else Reply()
        )
        self.models = models or Reply(body=json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}))
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> "LLMServer":
        self._thread.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @contextmanager
    def serving(self, body: dict[str, Any], headers: dict[str, str]) -> Iterator[Reply]:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        try:
            yield self.behaviour(number, body)
        finally:
            with self._lock:
                self._inside -= 1

    def said(self, number: int = -1) -> str:
        """All text of the user's messages in a request."""
        found = []
        for message in self.requests[number]["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            found += [part["text"] for part in parts if part["type"] == "text"]
        return "\n".join(found)

    def pictures(self, number: int = -1) -> list[str]:
        """The data URIs of the pictures in a request."""
        parts = [p for m in self.requests[number]["messages"] if isinstance(m["content"], list) for p in m["content"]]
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def _handler(server: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(server.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/chat/completions"):
                self._send(refusal(404, f"no such place: {self.path}"))
                return
            with server.serving(body, {name.lower(): value for name, value in self.headers.items()}) as reply:
                time.sleep(reply.wait)
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            data = reply.bytes()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if reply.drip:
                    for byte in data:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(reply.drip)
                self.wfile.write(b"" if reply.drip else data[: reply.cut])
                if reply.cut is not None:
                    self.close_connection = True
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


def words_of(body: dict[str, Any]) -> str:
    """The transcript that a question quotes."""
    text = json.dumps(body["messages"], ensure_ascii=False)
    found = re.search(r'Spoken words: \\"(.*?)\\"', text)
    return found[1] if found else ""


def write_clip(path: Path, *, seconds: float = 2.0, pictures: bool = True, sound: bool = True) -> Path:
    """A small video whose pictures brighten with time, with a tone."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10) if pictures else None
        audio = container.add_stream("aac", rate=16000) if sound else None
        if audio is not None:
            audio.layout = "mono"
        if video is not None:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            video.time_base = Fraction(1, 10)
            for n in range(round(10 * seconds)):
                level = int(30 + 200 * n / (10 * seconds))
                frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), level, np.uint8), format="rgb24")
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            tone = np.sin(2 * np.pi * 150 * np.arange(round(16000 * seconds)) / 16000).astype(np.float32) * 0.3
            for start in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def small_store(path: Path, count: int = 6, *, classes: Sequence[str] = ()) -> Path:
    """A store of ``count`` clips with words alone, a third in each split; labels from -1 to 1, or class numbers."""
    from moodal.core.spec import Classification, Regression
    from moodal.data.corpus import SPLITS, Clip, CorpusFacts, RawCorpus
    from moodal.data.store import save_store

    task = Classification(tuple(classes)) if classes else Regression(-1.0, 1.0)
    facts = CorpusFacts(
        name="own",
        title="small",
        language="en",
        task=task,
        protocol="emotion" if classes else "mosi",
        source="",
        licence="",
    )
    clips = tuple(
        Clip(
            id=f"video/{n}", split=SPLITS[n % 3], text=f"number {n} speaks",
            label=float(n % len(classes)) if classes else round(-1 + 2 * n / max(count - 1, 1), 2),
        )
        for n in range(count)
    )  # fmt: skip
    save_store(RawCorpus(facts=facts, clips=clips), path)
    return path
