"""What is gathered of one clip while it is read: streams and their times, reasons for what is absent, time by stage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from moodal.core.errors import MoodalError
from moodal.core.spec import Modality
from moodal.core.stopwatch import Stopwatch
from moodal.features.media import Frame, MediaError

#: Faults of libraries that cost a modality; others are mistakes of ours and must be seen.
_LIBRARY_FAULTS = (RuntimeError, ValueError, ArithmeticError, OSError)


class Gathered(Stopwatch):
    """What is gathered of the clip in ``path`` while it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.streams: dict[Modality, np.ndarray] = {}
        self.times: dict[Modality, np.ndarray] = {}
        self.absent: dict[Modality, str] = {}
        self.notes: list[str] = []
        self.confidence: np.ndarray | None = None

    @contextmanager
    def guarded(self, modality: Modality | None) -> Iterator[None]:
        """A fault of the file costs this modality and no other one. None: nobody asked for it."""
        try:
            yield
        except MediaError as fault:
            reason = self.sentence(str(fault))
        except MoodalError:
            raise
        except _LIBRARY_FAULTS as fault:
            reason = self.sentence(f"The {modality} could not be measured ({type(fault).__name__}: {fault})")
        else:
            return
        if modality is not None:
            self.absent[modality] = reason

    def sentence(self, told: str) -> str:
        """What an extractor or reader tells, as a sentence in one line, without the folder that the clip is in."""
        if self.path.parent != Path():
            told = told.replace(f"{self.path.parent}{os.sep}", "")
        told = " ".join(told.split()).rstrip(".")
        if not told.startswith(self.path.stem):  # names of files stay as they are
            told = told[:1].upper() + told[1:]
        return f"{told}." if told else ""

    def decoding(self, frames: Iterator[Frame], *, during: str) -> Iterator[Frame]:
        """``frames``, their time counted as decoding and not as that of the stage ``during``."""
        while True:
            started = time.perf_counter()
            frame = next(frames, None)
            took = time.perf_counter() - started
            self.spent["decode"] = self.spent.get("decode", 0.0) + took
            self.spent[during] = self.spent.get(during, 0.0) - took
            if frame is None:
                return
            yield frame

    def keep(self, modality: Modality, values: np.ndarray, times: np.ndarray, otherwise: str) -> None:
        """Keep the finite steps of a stream; ``otherwise``: why it is absent where there are none."""
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            self.notes.append(
                f"{int((~finite).sum())} of {len(finite)} steps of {modality} are not finite and left out."
            )
            if modality == "vision" and self.confidence is not None:
                self.confidence = self.confidence[finite]
        if not finite.any():
            self.absent[modality] = otherwise
            return
        self.streams[modality] = np.ascontiguousarray(values[finite], dtype=np.float32)
        self.times[modality] = np.asarray(times)[finite].astype(np.float64)
