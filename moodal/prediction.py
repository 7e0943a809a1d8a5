"""What is known of one clip after it was predicted: the answer, its evidence, and the signals to draw under the clip."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moodal.core.files import plain
from moodal.core.spec import MODALITIES, ROLES, Modality, Role
from moodal.data.corpus import FeatureRecipe
from moodal.explain import face
from moodal.explain.voice import step_seconds

#: A prediction: a number, or a probability for each class.
Answer = float | Mapping[str, float]

#: Points of a signal that are given away; longer ones are averaged in blocks.
MOST_POINTS = 1500
#: Channels that carry loudness, the best first, and their units.
_LOUDNESS = {"loudness": "", "energy": "", "mfcc_0": "mean log energy of the bands"}
#: What the names of a face's channels begin with that are drawn besides action units, and the unit of each.
_FACE = {"head_": "degrees", "gaze_": "", "eye_openness": "", "brow_asymmetry": "", "mouth_asymmetry": ""}
_TOLD: Mapping[Role, str] = {"audio": "voice", "vision": "face", "comment": "words"}
_WIDTH, _BAR = 110, 24


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One curve. ``times``, ``values``: (T,), in seconds of the clip and in ``unit``; NaN where there is nothing."""

    name: str
    title: str
    modality: Modality
    unit: str
    times: np.ndarray
    values: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Plain values, at most ``MOST_POINTS`` of them, None for NaN."""
        times, values = _thinned(self.times, self.values)
        shown = {"times": np.round(times, 3).tolist(), "values": np.round(values.astype(np.float64), 4).tolist()}
        return plain({"name": self.name, "title": self.title, "modality": self.modality, "unit": self.unit, **shown})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One clip predicted.

    Of a regression ``value`` on the scale from ``low`` to ``high``; of classes the likeliest, ``label``, and the
    ``probabilities``. All are None for a clip that has nothing the run reads (``absent`` says why).

    ``without``: modality -> the prediction with that modality, and what was said about it, removed; ``change``: how far
    the modality moves the value, or the probability of ``label``: the prediction minus the one without it. ``gates``:
    share of each modality in the fused summary; ``experts``: [layer][expert] routing weights; both None where the method
    has none. ``absent``: modality the run reads -> why the clip lacks it. ``seconds``: of the clip; ``spent``: seconds by
    stage, a batch's in equal shares.
    """

    id: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    label: str | None = None
    probabilities: Mapping[str, float] | None = None
    without: Mapping[Modality, Answer] = field(default_factory=dict)
    change: Mapping[Modality, float] = field(default_factory=dict)
    gates: Mapping[Modality, float] | None = None
    experts: list[list[float]] | None = None
    explanations: Mapping[Role, str] = field(default_factory=dict)
    text: str = ""
    words: tuple[tuple[str, float, float], ...] = ()
    text_source: str = ""
    absent: Mapping[Modality, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)
    signals: tuple[Signal, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but the signals (:meth:`timeline`), as values that JSON can hold."""
        shown = {name: value for name, value in vars(self).items() if name != "signals"}
        return plain({**shown, "words": [list(word) for word in self.words]})

    def timeline(self) -> dict[str, Any]:
        """For drawing: {"seconds", "words": [[word, start, end]], "signals": [{"name", "title", "modality", "unit",
        "times", "values"}]}, values None where there is nothing (no pitch, no face)."""
        words = [list(word) for word in self.words]
        return {"seconds": self.seconds, "words": words, "signals": [signal.as_json() for signal in self.signals]}


def signals_of(
    streams: Mapping[Modality, np.ndarray],
    times: Mapping[Modality, np.ndarray],
    recipes: Mapping[Modality, FeatureRecipe],
) -> tuple[Signal, ...]:
    """The curves worth seeing among ``streams`` ((T, D) each): pitch, loudness, what moves in the face.

    ``times``: (T,) seconds of each step; where they are not known they follow from the recipe's step, and without one
    there is nothing to draw.
    """
    found: list[Signal] = []
    chosen: tuple[tuple[Modality, _Choose], ...] = (("audio", _heard), ("vision", _seen))
    for modality, choose in chosen:
        recipe, stream = recipes.get(modality), streams.get(modality)
        if recipe is None or stream is None or not recipe.channels:
            continue
        when = times.get(modality, _steps(recipe, len(stream)))
        if when is not None:
            found += [
                Signal(name=name, title=title, modality=modality, unit=unit, times=when, values=values)
                for name, title, unit, values in choose(recipe, stream)
            ]
    return tuple(found)


#: (name, title, unit, (T,) values).
_Curve = tuple[str, str, str, np.ndarray]
_Choose = Callable[[FeatureRecipe, np.ndarray], list[_Curve]]


def _steps(recipe: FeatureRecipe, count: int) -> np.ndarray | None:
    step = step_seconds(recipe)
    return None if step is None else step * np.arange(count)


def _heard(recipe: FeatureRecipe, stream: np.ndarray) -> list[_Curve]:
    curves: list[_Curve] = []
    names = list(recipe.channels)
    if "log_f0" in names:
        octaves = stream[:, names.index("log_f0")].astype(np.float64)
        voiced, lowest = octaves != 0, recipe.settings.get("pitch_low")
        pitch = octaves if lowest is None else float(lowest) * 2.0**octaves
        curves.append(("pitch", "pitch", "octaves" if lowest is None else "Hz", np.where(voiced, pitch, np.nan)))
    loud = next((name for name in _LOUDNESS if name in names), None)
    if loud is not None:
        curves.append(("loudness", "loudness", _LOUDNESS[loud], stream[:, names.index(loud)]))
    return curves


def _seen(recipe: FeatureRecipe, stream: np.ndarray) -> list[_Curve]:
    curves: list[_Curve] = []
    for place, name in enumerate(recipe.channels):
        words, unit = face.words_of(name), next((_FACE[start] for start in _FACE if name.startswith(start)), None)
        if words or unit is not None:
            curves.append((name, words or name.replace("_", " "), unit or "", stream[:, place]))
    return curves


def _thinned(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks, so that at most ``MOST_POINTS`` are left; NaN only where a whole block is."""
    size = -(-len(values) // MOST_POINTS)
    if size <= 1:
        return times, values
    starts = np.arange(0, len(values), size)
    real = np.isfinite(values)
    count = np.add.reduceat(real.astype(np.float64), starts)
    total = np.add.reduceat(np.where(real, values, 0.0).astype(np.float64), starts)
    steps = np.minimum(starts + size, len(values)) - starts
    middle = np.add.reduceat(np.asarray(times, np.float64), starts) / steps
    return middle, np.where(count > 0, total / np.maximum(count, 1), np.nan)


# ---- as text


def format_prediction(prediction: Prediction) -> str:
    """What ``moodal predict`` prints of one clip."""
    seconds = f"  ({prediction.seconds:.1f} s)" if prediction.seconds else ""
    lines = [f"{prediction.id}{seconds}", *_answer(prediction), *_evidence(prediction)]
    for role in ROLES:
        if prediction.explanations.get(role):
            lines += _wrapped(_TOLD[role], prediction.explanations[role])
    if prediction.text:
        source = f"said ({prediction.text_source})" if prediction.text_source else "said"
        lines += _wrapped(source, prediction.text)
    for modality, why in prediction.absent.items():
        lines += _wrapped(f"no {modality}", why)
    for note in prediction.notes:
        lines += _wrapped("note", note)
    if prediction.spent:
        stages = ", ".join(f"{stage} {took:.2f} s" for stage, took in prediction.spent.items())
        lines += _wrapped("time", f"{sum(prediction.spent.values()):.2f} s: {stages}")
    return "\n".join(lines)


def _answer(prediction: Prediction) -> list[str]:
    if prediction.value is not None:
        scale = f"  on a scale from {prediction.low:g} to {prediction.high:g}" if prediction.low is not None else ""
        return [f"  score {prediction.value:+.2f}{scale}"]
    if prediction.probabilities is None:
        return ["  no prediction: the clip has nothing that the run reads"]
    width = max(map(len, prediction.probabilities))
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    return [f"  {name:{width}}  {share:6.1%}  {_bar(share, 1.0)}".rstrip() for name, share in ranked]


def _evidence(prediction: Prediction) -> list[str]:
    """One line a modality: how far it moves the prediction, as a bar, and its gate weight."""
    shown = [m for m in MODALITIES if m in prediction.change or m in (prediction.gates or {})]
    if not shown:
        return []
    of = f"the probability of {prediction.label}" if prediction.label is not None else "the score"
    scale = 1.0 if prediction.low is None or prediction.high is None else prediction.high - prediction.low
    longest = max([scale / 4, *map(abs, prediction.change.values())])  # a bar of small changes stays short
    lines = [f"  how far each modality moves {of}:"] if prediction.change else []
    for modality in shown:
        parts = [f"    {modality:6}"]
        if modality in prediction.change:
            change = prediction.change[modality]
            parts.append(f"{change:+.3f}  {_bar(change, longest):{_BAR}}")
        if prediction.gates is not None and modality in prediction.gates:
            parts.append(f"gate {prediction.gates[modality]:.2f}")
        lines.append("  ".join(parts).rstrip())
    return lines


def _bar(value: float, longest: float) -> str:
    """``#`` for what raises, ``-`` for what lowers."""
    return ("#" if value > 0 else "-") * round(_BAR * abs(value) / longest)


def _wrapped(title: str, text: str) -> Sequence[str]:
    return textwrap.wrap(f"{title}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
