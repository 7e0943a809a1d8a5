"""Shared by all tests: no network, one toy corpus, and a way to run commands as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of the output."""
        return json.loads(self.out.strip().splitlines()[-1])


class Running:
    """A command under way in a process of its own."""

    def __init__(self, zygote: "Zygote", pid: int, out: Path):
        self.zygote, self.pid, self.out = zygote, pid, out
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.zygote.ask({"poll": self.pid})["code"]
        return self.code

    def wait(self, seconds: float = 120) -> Finished:
        until = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < until, f"still running after {seconds} s: {self.error()}"
            time.sleep(0.02)
        return Finished(int(self.code or 0), (self.out / "stdout").read_text(), self.error())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def error(self) -> str:
        return (self.out / "stderr").read_text()


class Zygote:
    """Starts real processes that have everything imported already (see tests/zygote.py)."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )
        assert self.read() == {"ready": True}

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def start(self, *argv: str) -> Running:
        """Run the command line with ``argv``."""
        return self._start({"argv": [str(part) for part in argv]})

    def run(self, *argv: str) -> Finished:
        return self.start(*argv).wait()

    def start_call(self, function: str, *arguments: Any) -> Running:
        """Run "module:function" with arguments that JSON can hold."""
        return self._start({"call": function, "arguments": list(arguments)})

    def _start(self, request: dict[str, Any]) -> Running:
        self.count += 1
        out = self.folder / f"command-{self.count}"
        out.mkdir()
        return Running(self, self.ask({**request, "out": str(out)})["pid"], out)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=20)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("commands"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def tiny_text_settings() -> Sequence[str]:
    """Settings of ``synthetic/text`` that train within a second and need no pretrained encoder."""
    import toys

    model = [f"model.{key}={value}" for key, value in toys.TINY_TEXT.items()]
    reader = ["reader.train=41", "reader.valid=12", "reader.test=13", "reader.steps=12,16"]
    return (
        "data.text.mode=features",
        "data.explainer=stored",
        *model,
        *reader,
        "train.epochs=3",
        "train.batch=8",
        "device.accelerator=cpu",
    )


@pytest.fixture(scope="session")
def toy_data():
    """The prepared toy corpus (regression; text, audio and vision features)."""
    import toys

    return toys.prepared(toys.toy_config())


@pytest.fixture(scope="module")
def one_thread():
    """Tiny matrices on one thread: faster, and the same on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
