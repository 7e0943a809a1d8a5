"""From a clip to a prediction with its evidence, by a stored run and without its corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from moodal.build import make_fabric
from moodal.core.errors import check
from moodal.core.settings import DeviceConfig
from moodal.core.spec import MODALITIES, Classification, Modality, Regression, Role
from moodal.data import CORPORA
from moodal.data.corpus import FeatureRecipe
from moodal.data.extractors import EXTRACTORS
from moodal.features.clip import ClipExtractor, ExtractedClip, from_recipes
from moodal.features.media import Limits
from moodal.features.words import WordSettings
from moodal.live import Live, LiveData, Stopwatch
from moodal.methods import METHODS
from moodal.model_card import reads
from moodal.prediction import Answer, Prediction, signals_of
from moodal.pretrained import SHIPPED, SavedRun, open_saved, save_pretrained
from moodal.train.evaluate import Predictions, evaluate

#: What is measured for the eye alone, of modalities that the run does not read.
_WATCHED: Mapping[Modality, str] = {"audio": "librosa_33", "vision": "face_mesh"}
_ABSENT: Mapping[Modality, str] = {
    "text": "No words were given or found.",
    "audio": "No sound was given or found.",
    "vision": "No face was given or found.",
}


class Predictor:
    """A run made ready to score clips. Open one with :meth:`open`; it holds all models, so make one for many clips.

    It computes as training did: features by the run's own recipes, standardised as the training split was, explained
    against the training clips. One thread at a time may use it.
    """

    def __init__(
        self,
        run: SavedRun,
        *,
        encoder: str | None = None,
        words: WordSettings | None = None,
        limits: Limits | None = None,
        watch: bool = False,
        accelerator: str = "cpu",
    ) -> None:
        self.run = run
        self._words, self._limits = words, limits
        self._fabric: Fabric = make_fabric(DeviceConfig(accelerator=accelerator))
        self._method = run.method.to(self._fabric.device).eval()
        self._data = LiveData(run, encoder=encoder, device=self._fabric.device)
        self._watched = _watched(self._data.recipes) if watch else {}

    @classmethod
    def open(
        cls,
        source: str | Path = SHIPPED,
        *,
        encoder: str | None = None,
        words: WordSettings | None = None,
        limits: Limits | None = None,
        watch: bool = False,
        accelerator: str = "cpu",
    ) -> "Predictor":
        """The run in ``source``: a run folder, a folder of :meth:`save_pretrained`, a hub repository "owner/name", or
        "pretrained", which ships with the package.

        ``encoder``: where the run's text encoder is, if not where it was in training (a folder or hub name with the same
        weights); ``words``: how words are found in clips; ``limits``: what clips are refused; ``watch``: also measure what
        the run does not read, for :meth:`Prediction.timeline` alone; ``accelerator``: as ``device.accelerator``.
        Raises ``MoodalError`` where there is no whole run or something it needs is not on this machine.
        """
        return cls(
            open_saved(source), encoder=encoder, words=words, limits=limits, watch=watch, accelerator=accelerator
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Predictor":
        """:meth:`open` under the name it has elsewhere."""
        return cls.open(source)

    def save_pretrained(self, folder: str | Path, *, encoder: bool = True) -> Path:
        """Write the run to a new folder that needs nothing of this machine: config.json, model.safetensors, README.md.

        ``encoder``: whether a fine-tuned text encoder is part of the weights. Raises ``MoodalError`` where the folder is in
        use or cannot be written.
        """
        return save_pretrained(self.run, Path(folder), encoder=encoder)

    @property
    def facts(self) -> dict[str, Any]:
        """What the run is, as plain values: source, method, corpus, task, scores of its test split, what it reads."""
        run, method = self.run, METHODS[self.run.cfg.method]
        return {
            "source": run.source, "method": run.cfg.method, "title": method.title, "paper": method.paper,
            "corpus": run.data["corpus"], "corpus_title": run.data["title"], "language": run.data["language"],
            "licence": CORPORA[run.cfg.corpus].facts.licence, "task": dict(run.data["task"]),
            "scores": dict(run.scores.get("test", {})), "modalities": list(self.modalities),
            "features": {m: f"{recipe.name} version {recipe.version}" for m, recipe in self.recipes.items()},
            "reads": reads(run.data), "explainer": dict(run.data.get("explainer", {})), "notes": list(run.notes),
        }  # fmt: skip

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the run reads or is told about, in the order text, audio, vision."""
        return self._data.modalities

    @property
    def recipes(self) -> Mapping[Modality, FeatureRecipe]:
        """The features that the run reads, by modality: how they are made, and their width."""
        return self._data.recipes

    @cached_property
    def extractor(self) -> ClipExtractor:
        """What makes clips as the run reads them, by the run's own recipes."""
        return from_recipes({**self._watched, **self.recipes}, words=self._words, limits=self._limits)

    def extract(
        self, path: str | Path, *, id: str | None = None, text: str | None = None, start: float = 0.0, end: float | None = None
    ) -> ExtractedClip:  # fmt: skip
        """What the run reads of the clip in ``path`` from ``start`` to ``end`` seconds; ``text``: its transcript.

        Raises ``MediaError`` where nothing at all can be read of the file.
        """
        wanted = [m for m in MODALITIES if m in self._data.wanted or m in self._watched]
        language = None if self._words is not None else str(self.run.data["language"])
        return self.extractor(
            Path(path), id=id, text=text, start=start, end=end, language=language, modalities=wanted
        )  # fmt: skip

    def clip(
        self,
        path: str | Path,
        *,
        text: str | None = None,
        start: float = 0.0,
        end: float | None = None,
        evidence: bool = True,
        explanations: Mapping[Role, str] | None = None,
    ) -> Prediction:
        """Predict one file; see :meth:`extract` and :meth:`predict`."""
        clip = self.extract(path, text=text, start=start, end=end)
        return self.predict([clip], evidence=evidence, explanations=[explanations or {}])[0]

    def text(self, text: str, *, evidence: bool = True) -> Prediction:
        """Predict from words alone. Raises ``MoodalError`` where there are none or the run reads no text."""
        check(bool(text.strip()), "The text is empty; give the words that were said.")
        check("text" in self.modalities, f"The run reads {' and '.join(self.modalities)} and no text; give it a clip.")
        absent: dict[Modality, str] = {m: "Only a text was given." for m in MODALITIES if m != "text"}
        clip = ExtractedClip(id="text", path="", seconds=0.0, text=text, text_source="given", absent=absent)
        return self.predict([clip], evidence=evidence)[0]

    def predict(
        self,
        clips: Sequence[ExtractedClip],
        *,
        evidence: bool = True,
        explanations: Sequence[Mapping[Role, str]] | None = None,
    ) -> list[Prediction]:
        """Predict clips in one batch, each by itself: company and order change nothing (beyond rounding, 1e-5).

        ``evidence``: also predict each clip without each of its modalities. ``explanations``: texts of each clip by role,
        such as a language model's; what they leave out is measured where the run was trained on measured ones.
        Raises ``DataError`` where a stream does not have the shape that the run reads.
        """
        if not clips:
            return []
        check(
            explanations is None or len(explanations) == len(clips),
            f"{len(explanations or ())} rows of explanations were given for {len(clips)} clips; give one for each.",
        )
        watch = Stopwatch()
        live = self._data(clips, explanations or [{}] * len(clips), watch)
        present = [[m for m in self.modalities if live.present[m][row]] for row in range(len(clips))]
        versions: list[tuple[int, Modality | None]] = [(row, None) for row in range(len(clips))]
        if evidence:
            versions += [(row, modality) for row, there in enumerate(present) for modality in there]
        with watch.timed("model"):
            size = self.run.cfg.train.eval_batch
            table = evaluate(self._method, live.versions(versions), size=size, fabric=self._fabric)
        answers = self._answers(table)
        without: list[dict[Modality, Answer | None]] = [{} for _ in clips]
        for (row, gone), answer in zip(versions, answers, strict=True):
            if gone is not None:
                without[row][gone] = answer
        share = {stage: seconds / len(clips) for stage, seconds in watch.spent.items()}
        found = [self._unanswered(clip, present[row], live, row, share) for row, clip in enumerate(clips)]
        return [
            self._answered(
                one, answers[row], without[row], {name: values[row] for name, values in table.inspection.items()}
            )
            if present[row]
            else one
            for row, one in enumerate(found)
        ]

    def _unanswered(
        self, clip: ExtractedClip, present: Sequence[Modality], live: Live, row: int, share: Mapping[str, float]
    ) -> Prediction:
        """What is known of a clip besides its prediction. ``share``: its part of the time of the batch."""
        absent = {m: self._why_absent(m, clip) for m in self.modalities if m not in present}
        spent = dict(clip.spent)
        for stage, seconds in share.items():
            spent[stage] = spent.get(stage, 0.0) + seconds
        recipes = {**self._watched, **self.recipes}
        return Prediction(
            id=clip.id, explanations=dict(live.explanations[row]), text=clip.text, words=clip.words,
            text_source=clip.text_source, absent=absent, notes=(*clip.notes, *live.notes[row]), seconds=clip.seconds,
            spent=spent, signals=signals_of(clip.streams, clip.times, recipes),
        )  # fmt: skip

    def _why_absent(self, modality: Modality, clip: ExtractedClip) -> str:
        if modality == "text" and "text" in self.recipes and clip.text:
            name = self.recipes["text"].name
            return f"The run reads text as {name}, which came with its corpus; nothing here makes it from words."
        return clip.absent.get(modality, _ABSENT[modality])

    def _answers(self, table: Predictions) -> list[Answer | None]:
        """A number or the probabilities of each row; None where the method gave none."""
        task = self._method.spec.task
        rows = [row if np.isfinite(row).all() else None for row in table.prediction]
        if isinstance(task, Classification):
            return [None if row is None else dict(zip(task.classes, map(float, row), strict=True)) for row in rows]
        return [None if row is None else float(row) for row in rows]

    def _answered(
        self,
        clip: Prediction,
        answer: Answer | None,
        without: Mapping[Modality, Answer | None],
        inspected: Mapping[str, np.ndarray],
    ) -> Prediction:
        """``clip`` with what the method says of it; ``inspected``: what it lets one look at."""
        task = self._method.spec.task
        gates, experts = _gates(inspected.get("gates"), self.modalities), _experts(inspected.get("routing"))
        if isinstance(task, Regression):
            clip = replace(clip, low=task.low, high=task.high)
        if answer is None:
            notes = (
                *clip.notes,
                "The method gave no finite number for this clip; its weights or features are unusual.",
            )
            return replace(clip, notes=notes)
        label = None if isinstance(answer, float) else max(answer, key=lambda name: answer[name])
        known = {m: other for m, other in without.items() if other is not None}
        return replace(
            clip,
            value=answer if isinstance(answer, float) else None,
            label=label,
            probabilities=None if isinstance(answer, float) else answer,
            without=known,
            change={m: _number(answer, label) - _number(other, label) for m, other in known.items()},
            gates=gates,
            experts=experts,
        )


def _number(answer: Answer, label: str | None) -> float:
    """A score, or the probability of ``label``."""
    return answer if isinstance(answer, float) else answer[label or ""]


def _watched(read: Mapping[Modality, FeatureRecipe]) -> dict[Modality, FeatureRecipe]:
    """How to measure what the run does not read."""
    return {m: EXTRACTORS[name]().recipe() for m, name in _WATCHED.items() if m not in read}


def _gates(gates: np.ndarray | None, modalities: Sequence[Modality]) -> dict[Modality, float] | None:
    """(M,) gates by modality; None where they are not shares of the M modalities, as other kinds of gates are."""
    if gates is None or gates.shape != (len(modalities),) or not np.isclose(gates.sum(), 1.0, atol=1e-4):
        return None
    return {modality: float(gate) for modality, gate in zip(modalities, gates, strict=True)}


def _experts(routing: np.ndarray | None) -> list[list[float]] | None:
    """(L, E) routing weights as lists; None where there are none or they are of another form."""
    return None if routing is None or routing.ndim != 2 else [[float(weight) for weight in layer] for layer in routing]
