"""Runs on the synthetic corpus, trained in a second or two, and its test clips as an extractor would give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder
from tiny_methods import TINY

from moodal.build import configure, make_fabric, open_run, stored_config, train
from moodal.core.spec import Modality
from moodal.features.clip import ExtractedClip
from moodal.predictor import Predictor
from moodal.prepare import read_corpus
from moodal.train.evaluate import Predictions, evaluate

#: a fifth of the test clips has no voice, a fifth no face; two vision steps are averaged into one.
SETTINGS: Mapping[str, Any] = {
    "reader.train": 41, "reader.valid": 12, "reader.test": 13, "reader.steps": [12, 16], "reader.missing": 0.2,
    "data.text.max_tokens": 24, "data.audio.statistics": True, "data.vision.pool": 2,
    "train.epochs": 1, "train.batch": 8, "train.rate": 1e-2, "device.accelerator": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A run folder, the folder of its text encoder, and what tests ask of them again and again."""

    folder: Path
    encoder: Path

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor.open(self.folder)

    @cached_property
    def clips(self) -> list[ExtractedClip]:
        """Those of its own test split."""
        return clips_of(read_corpus(stored_config(self.folder)))

    @cached_property
    def table(self) -> Predictions:
        """What the run itself predicts of :attr:`clips`, with its corpus."""
        run = open_run(self.folder)
        return evaluate(run.method, run.data.splits["test"], size=64, fabric=make_fabric(run.cfg.device))


def clips_of(raw: Any) -> list[ExtractedClip]:
    """The test clips of a corpus as an extractor would give them; empty rows are absent streams."""
    clips = []
    for row in raw.positions("test"):
        clip, streams = raw.clips[row], {}
        for modality, stream in raw.streams.items():
            if len(stream[row]):
                streams[modality] = np.array(stream[row])
        absent: dict[Modality, str] = {m: f"There is no {m}." for m in ("audio", "vision") if m not in streams}
        times = {m: 0.1 * np.arange(len(stream)) for m, stream in streams.items() if m != "text"}
        clips.append(
            ExtractedClip(
                id=clip.id, path="", seconds=1.6, text=clip.text, words=clip.words, text_source="given", streams=streams,
                times=times, absent=absent, spent={"decode": 0.25}, notes=("A note of the extractor.",),
            )
        )  # fmt: skip
    return clips


Train = Callable[..., Trained]


@pytest.fixture(scope="session")
def train_tiny(tmp_path_factory) -> Train:
    """Train a method on the synthetic corpus; settings as for ``configure``."""
    home = tmp_path_factory.mktemp("predict")
    encoder = tiny_encoder.write(home / "encoder")

    def run(method: str = "text", **settings: Any) -> Trained:
        model = {f"model.{key}": value for key, value in TINY.get(method, {}).items()}
        asked = {key.replace("__", "."): value for key, value in settings.items()}
        cfg = configure(f"synthetic/{method}", {**model, **SETTINGS, "data.text.encoder": str(encoder), **asked}).config
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MOODAL_CACHE", str(home / "cache"))
            return Trained(train(cfg, runs=home / "runs").folder, encoder)

    return run


@pytest.fixture(scope="session")
def frozen(train_tiny: Train) -> Trained:
    """TEXT with explanations, frozen text encoder."""
    return train_tiny()


@pytest.fixture(scope="session")
def finetuned(train_tiny: Train) -> Trained:
    """TEXT with a fine-tuned text encoder."""
    return train_tiny(data__text__mode="finetune", data__audio__statistics=False)


@pytest.fixture(scope="session")
def classes(train_tiny: Train) -> Trained:
    """MulT on classes, text features of the corpus, nothing explained."""
    return train_tiny("mult", reader__task="classification", data__text__mode="features", data__audio__statistics=False)
