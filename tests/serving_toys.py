"""A predictor that computes sums and an extractor that does what the file tells it, so that servers start in a moment.

``python -m serving_toys`` serves them; it prints the address and, when it has stopped by itself, "stopped".
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import MoodalError
from moodal.data.corpus import FeatureRecipe
from moodal.features.clip import ClipSettings, ExtractedClip
from moodal.prediction import Prediction, signals_of
from moodal.serving.settings import ServeSettings

RECIPES = {
    "audio": FeatureRecipe(
        name="toy_voice", version="1", width=3, channels=("log_f0", "loudness", "other"),
        settings={"hop": 800, "sample_rate": 16000, "pitch_low": 65.0},
    ),
    "vision": FeatureRecipe(
        name="toy_face", version="1", width=6, settings={"hop": 0.1},
        channels=("AU12_r", "AU04_r", "eye_openness", "head_yaw", "head_pitch", "head_roll"),
    ),
}  # fmt: skip
#: What a file may begin with, so that the extractor below misbehaves.
ORDERS = (b"CRASH", b"SLEEP", b"SPIN", b"MEMORY", b"RAISE", b"REFUSE", b"WRITE", b"SLOW")
HOSTILE_TEXT = "<img src=x onerror=\"document.title='broken in'\"> & <b>bold</b>"


@dataclass
class ToyExtractor:
    """What the server asks a predictor's extractor: its settings and recipes."""

    settings: ClipSettings = field(default_factory=lambda: ClipSettings(audio="none", vision="none"))
    recipes: dict = field(default_factory=lambda: dict(RECIPES))
    unmade: dict = field(default_factory=dict)


class ToyPredictor:
    """The score is a bounded sum of what the clip holds. ``gate``: when given, prediction waits for it."""

    recipes = RECIPES
    modalities = ("text", "audio", "vision")

    def __init__(self, *, classes: bool = False, gate: threading.Event | None = None, slow: float = 0.0):
        self.classes, self.gate, self.slow = classes, gate, slow
        self.extractor = ToyExtractor()
        self.batches: list[int] = []

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "source": "/somewhere/private/seed-1",
            "method": "toy",
            "title": "Toy",
            "corpus": "toys",
            "language": "en",
        }

    def predict(self, clips: Sequence[ExtractedClip], *, evidence: bool = True) -> list[Prediction]:
        self.batches.append(len(clips))
        if self.gate is not None:
            self.gate.wait(20)
        time.sleep(self.slow)
        if any(clip.text == "poison" for clip in clips):
            raise MoodalError("The text is poison; send another.")
        if any(clip.text == "bug" for clip in clips):
            raise ZeroDivisionError("a bug")
        return [self._one(clip, evidence) for clip in clips]

    def _one(self, clip: ExtractedClip, evidence: bool) -> Prediction:
        parts = {"text": len(clip.text) / 40 if clip.text else 0.0}
        parts |= {m: float(np.tanh(stream.mean())) / 3 for m, stream in clip.streams.items()}
        value = float(np.tanh(sum(parts.values())))
        share = (1 + value) / 2
        probabilities = {"happy": share, "sad <i>": 1 - share} if self.classes else None
        changes = {m: float(np.tanh(part)) for m, part in parts.items() if part} if evidence else {}
        return Prediction(
            id=clip.id, value=None if self.classes else value, low=-1.0, high=1.0,
            label="happy" if self.classes else None, probabilities=probabilities, change=changes,
            without={m: value - change for m, change in changes.items()},
            gates={"text": 0.5, "audio": 0.3, "vision": 0.2}, experts=[[0.7, 0.3, 0.0], [0.1, 0.2, 0.7]],
            explanations={"audio": "a high, lively voice", "vision": "smiles for most of it", "comment": HOSTILE_TEXT},
            text=clip.text, words=clip.words, text_source=clip.text_source, absent=clip.absent, notes=clip.notes,
            seconds=clip.seconds, spent={**clip.spent, "model": 0.001}, signals=signals_of(clip.streams, clip.times, RECIPES),
        )  # fmt: skip


def read_toy(path: Path, *, id: str, text: str | None, start: float, end: float | None) -> ExtractedClip:
    """A made clip, whatever the file holds, unless it begins with one of ``ORDERS``."""
    order = path.read_bytes()[:16].split(b" ")[0].decode(errors="replace")
    misbehave(order, path)
    seconds = 4.0 if end is None else end - start
    steps, frames = np.arange(0, seconds, 0.05), np.arange(0, seconds, 0.1)
    voice = np.stack([0.8 + 0.3 * np.sin(steps), np.sin(3 * steps) ** 2, np.zeros_like(steps)], axis=1)
    voice[(steps % 1) > 0.8, 0] = 0.0  # no pitch there
    face = np.stack([np.sin(frames * (n + 1)) * (n + 1) / 6 for n in range(6)], axis=1)
    said = text or "I did not expect that at all"
    each = seconds / len(said.split())
    words = tuple((word, n * each, (n + 0.8) * each) for n, word in enumerate(said.split()))
    return ExtractedClip(
        id=id, path=str(path), seconds=seconds, text=said, words=words, text_source="given" if text else "a toy",
        streams={"audio": voice.astype(np.float32), "vision": face.astype(np.float32)},
        times={"audio": steps, "vision": frames}, notes=(f"read from {path}",), spent={"decode": 0.01},
        confidence=np.ones(len(frames), np.float32),
    )  # fmt: skip


def misbehave(order: str, path: Path) -> None:
    """What a decoder might do on a hostile file."""
    if order == "CRASH":
        os.abort()
    elif order == "SLEEP":
        time.sleep(300)
    elif order == "SLOW":
        time.sleep(0.4)
    elif order == "SPIN":
        while True:
            pass
    elif order == "MEMORY":
        bytearray(2**50)
    elif order == "RAISE":
        raise RuntimeError(f"inside of {path}")
    elif order == "REFUSE":
        raise MoodalError(f"{path} is 999 s long, and at most 120 are read; cut it.")
    elif order == "WRITE":
        import tempfile

        Path(tempfile.mkstemp()[1]).write_bytes(b"left behind")
        print("noise" * 1000, flush=True)


def make_toy() -> Callable[..., ExtractedClip]:
    return read_toy


def make_nothing() -> Callable[..., ExtractedClip]:
    raise MoodalError("The model is not on this machine.")


@contextmanager
def client(predictor: Any = None, *, make: Any = make_toy, **settings: Any) -> Iterator[Any]:
    """A client of an application with its lifespan, in this process."""
    from fastapi.testclient import TestClient

    from moodal.serving.app import create_app

    app = create_app(predictor or ToyPredictor(), ServeSettings(**settings), make=make)
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def wait_for_decoder(found: Any, seconds: float = 60) -> None:
    """Until a decoding process is ready."""
    until = time.monotonic() + seconds
    while not found.get("/health").json()["decoders"]["ready"]:
        assert time.monotonic() < until, "no decoder came up"
        time.sleep(0.05)


def features(rows: int = 5, *, seed: int = 0) -> dict[str, list[list[float]]]:
    """Random features of the widths that the toy reads."""
    draw = np.random.default_rng(seed)
    return {m: draw.normal(size=(rows, recipe.width)).round(4).tolist() for m, recipe in RECIPES.items()}


if __name__ == "__main__":
    from moodal.serving import run

    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    toy = ToyPredictor(slow=options.pop("slow", 0.0), classes=options.pop("classes", False))
    run.serve(toy, port=0, settings=ServeSettings(**options), make=make_toy, announce=lambda at: print(at, flush=True))
    print("stopped", flush=True)
