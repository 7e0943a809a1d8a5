"""A process that has imported everything and forks a child per request, so that a command starts in milliseconds.

Requests are JSON lines on stdin, answers JSON lines on stdout: {"argv": [...], "out": FOLDER} runs the command line and
{"call": "module:function", "arguments": [...], "out": FOLDER} a function, both answered with {"pid": n}; {"poll": n} is
answered with {"code": null} while the child runs, then its exit code (negative: the signal that killed it).
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import moodal.bench.runs
import moodal.jobs
import moodal.methods.text
import moodal.train.fit  # noqa: F401

torch.set_num_threads(1)  # before any work, so that no pool of threads exists when a child is forked


def work(request: dict[str, Any]) -> None:
    if "argv" in request:
        sys.argv = ["moodal", *request["argv"]]
        runpy.run_module("moodal", run_name="__main__", alter_sys=True)
    else:
        module, _, function = request["call"].partition(":")
        getattr(importlib.import_module(module), function)(*request["arguments"])


def child(request: dict[str, Any]) -> None:
    """Run one request with its output in files; never returns."""
    out = Path(request["out"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 0
    try:
        work(request)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        return {"code": os.waitstatus_to_exitcode(status) if pid else None}
    pid = os.fork()
    if pid == 0:
        child(request)
    return {"pid": pid}


if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
