"""An extractor for tests of extraction: a "clip" is a text file whose content says what happens to its reader."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import MoodalError
from moodal.data.corpus import FeatureRecipe
from moodal.features.clip import ClipExtractor, ClipSettings, ExtractedClip
from moodal.features.extract import extract_folder
from moodal.features.face import FaceTrack
from moodal.features.media import Frame, MediaError

RECIPES = {
    "audio": FeatureRecipe(name="fake_audio", version="1", width=3, settings={"hop": 0.5}),
    "vision": FeatureRecipe(name="fake_vision", version="1", width=2, settings={"hop": 0.1}),
}


class FakeExtractor(ClipExtractor):
    """Obeys the file: "ok", "slow", "blind", "hang", "die", "media", "bug" or "stop", and notes each clip it is given."""

    def __init__(self, settings: ClipSettings) -> None:
        self.settings, self.recipes, self.unmade = settings, RECIPES, {}

    def warm(self) -> None:
        pass

    def __call__(self, path: Path, **given: Any) -> ExtractedClip:
        order, _, number = path.read_text().partition(" ")
        with (path.parent / "given.log").open("a") as log:
            log.write(f"{path.name} {given['language']}\n")
        tempfile.NamedTemporaryFile(delete=False).close()  # what a library may leave behind
        if order == "hang":
            time.sleep(600)
        if order == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if order == "media":
            raise MediaError(f"{path} is no media file; give another.")
        if order == "bug":
            raise KeyError("of a library")
        if order == "stop":
            raise MoodalError("the model is missing; get it.")
        time.sleep(0.15 if order == "slow" else 0)
        return fake_clip(int(number or 1), blind=order == "blind", text=given["text"])


class Broken(FakeExtractor):
    """Cannot start."""

    def warm(self) -> None:
        raise RuntimeError("no model")


class Levels:
    """The level of each tenth of a second: a quick extractor of sound."""

    def recipe(self) -> FeatureRecipe:
        return FeatureRecipe(name="levels", version="1", width=1, settings={"hop": 1600, "sample_rate": 16000})

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.abs(wave[: len(wave) // 1600 * 1600]).reshape(-1, 1600).mean(1, keepdims=True)
        return steps.astype(np.float32), np.arange(len(steps)) / 10


class Colours:
    """The mean colour of each frame: a quick extractor of pictures."""

    def recipe(self) -> FeatureRecipe:
        return FeatureRecipe(name="colours", version="1", width=3, settings={"hop": 0.1})

    def __call__(self, frames: Iterable[Frame]) -> FaceTrack:
        shown = [(frame.time, frame.picture.mean((0, 1))) for frame in frames]
        times, values = np.array([t for t, _ in shown]), np.array([v for _, v in shown], np.float32).reshape(-1, 3)
        return FaceTrack(values, times, np.ones(len(times)), np.ones(len(times), int))


def quick(settings: ClipSettings) -> ClipExtractor:
    """The real readers of media with quick extractors."""
    return ClipExtractor(settings, audio=Levels(), vision=Colours())


def fake_clip(number: int, *, blind: bool = False, text: str | None = None) -> ExtractedClip:
    """A clip of ``number`` seconds that is the same each time."""
    drawn = np.random.default_rng(number)
    streams = {"audio": drawn.normal(size=(2 * number, 3)).astype(np.float32)}
    if not blind:
        streams["vision"] = drawn.normal(size=(10 * number, 2)).astype(np.float32)
    return ExtractedClip(
        id="", path="", seconds=float(number), streams=streams,
        times={m: np.arange(len(values)) / 2 for m, values in streams.items()},
        text=text or f"clip {number}", words=(("clip", 0.0, 0.5),), text_source="given" if text else "heard",
        absent={"vision": "No face was found."} if blind else {}, spent={"audio": time.perf_counter() % 1},
        confidence=None if blind else np.ones(10 * number),
    )  # fmt: skip


def write_folder(folder: Path, orders: Sequence[str]) -> Path:
    """Clips c00.clip, c01.clip, ... that say ``orders``, and their labels: numbers, in splits of their own choosing."""
    folder.mkdir(parents=True)
    rows = ["file,label,split,text"]
    for number, order in enumerate(orders):
        (folder / f"c{number:02}.clip").write_text(order)
        rows.append(f"c{number:02}.clip,{number % 5 - 2},{('train', 'valid', 'test')[number % 3]},")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def given(folder: Path) -> list[str]:
    """The clips that extractors were given, in order."""
    log = folder / "given.log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


if __name__ == "__main__":  # an extraction to be killed: FOLDER OUT WORKERS
    where = Path(sys.argv[1])
    extract_folder(where, where / "labels.csv", Path(sys.argv[2]), workers=int(sys.argv[3]), make=FakeExtractor)
