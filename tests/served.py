"""The toys' server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

TESTS = Path(__file__).resolve().parent


class Server:
    """``python -m serving_toys`` on a free port, with its temporary files below ``folder``."""

    def __init__(self, folder: Path, **options):
        self.folder = folder
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving_toys", json.dumps(options)], stdout=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.address

    def wait_until_ready(self, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while not httpx.get(f"{self.address}/health", timeout=60).json()["decoders"]["ready"]:
            assert time.monotonic() < until, "no decoder came up"
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
