"""The other side of ``decoding``: a process that reads clips, under limits, and answers with bytes.

Requests are JSON. An answer's first byte says what follows: ``DONE`` a parcel, ``UNUSABLE`` a sentence about the file,
``BROKEN`` a sentence after which this process is not to be used again, ``READY`` nothing.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from moodal.core.errors import MoodalError
from moodal.core.processes import end_with_parent
from moodal.core.spec import Modality
from moodal.features.clip import ClipExtractor, ClipSettings, ExtractedClip
from moodal.serving.parcel import pack

READY, DONE, UNUSABLE, BROKEN = b"R", b"D", b"U", b"B"

#: Makes what reads a clip: called as ``read(path, id=, text=, start=, end=)`` once for each file.
Maker = Callable[[], Callable[..., ExtractedClip]]


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """Bytes of address space of the process; seconds of processor time for one clip."""

    memory: int
    cpu_seconds: int


@dataclass(frozen=True)
class Reader:
    """Builds, in a decoding process, an extractor as the server's predictor has it; its ``modalities`` are read."""

    settings: ClipSettings
    unmade: Mapping[Modality, str]
    modalities: tuple[Modality, ...]

    def __call__(self) -> Callable[..., ExtractedClip]:
        """The extractor, its models loaded. Raises MoodalError where one is missing."""
        extractor = ClipExtractor(self.settings, unmade=self.unmade)
        extractor.warm()
        return partial(extractor, modalities=self.modalities)


def main(connection: Connection, make: Maker, limits: WorkerLimits, folder: str) -> None:
    """Answer requests from ``connection`` until it is closed. ``folder``: where this process may write."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the server finishes first, then ends this one
    end_with_parent()
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_AS, limits.memory)
    try:
        read = make()
    except Exception as fault:  # whatever it is, the server must hear of it
        connection.send_bytes(BROKEN + _sentence(fault).encode())
        return
    _quiet()
    connection.send_bytes(READY)
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        tempfile.tempdir = str(Path(request["path"]).parent)  # goes away with the clip
        _allow_cpu(limits.cpu_seconds)
        connection.send_bytes(_answer(read, request))


def _answer(read: Callable[..., ExtractedClip], request: Mapping[str, Any]) -> bytes:
    path = Path(request["path"])
    try:
        clip = read(path, id=request["id"], text=request["text"], start=request["start"], end=request["end"])
        return DONE + pack(clip)
    except MoodalError as fault:
        return UNUSABLE + _sentence(fault, path).encode()
    except Exception as fault:  # the decoder's state is unknown after this
        return BROKEN + f"{type(fault).__name__}: {_sentence(fault, path)}".encode()


def _sentence(fault: Exception, path: Path | None = None) -> str:
    """What went wrong, without the place where the clip lies."""
    told = " ".join(str(fault).split()) or type(fault).__name__
    told = told if path is None else told.replace(str(path), path.name)
    return told[:1].upper() + told[1:500]


def _allow_cpu(seconds: int) -> None:
    """From now on ``seconds`` more of processor time; the kernel ends the process after that."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)


def _lower(kind: int, value: int) -> None:
    """Set the soft limit, as far as the hard limit and the system allow."""
    hard = resource.getrlimit(kind)[1]
    try:
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (OSError, ValueError):  # some systems have the constant and refuse the limit
        return


def _quiet() -> None:
    """What decoders print about a bad file is not for the server's log: one upload could fill it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
