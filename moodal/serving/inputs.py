"""A JSON request, checked: a text, features by modality, or both become a clip as the predictor takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moodal.core.errors import did_you_mean
from moodal.core.spec import MODALITIES, Modality
from moodal.features.clip import ExtractedClip
from moodal.serving.refusal import Refusal, unusable
from moodal.serving.settings import ServeSettings

KEYS = ("text", "features", "evidence", "id")


@dataclass(frozen=True)
class Asked:
    """A clip to predict, and whether the evidence is wanted with it. ``kind``: what the request held."""

    clip: ExtractedClip
    evidence: bool
    kind: str


def parse(body: bytes, *, widths: Mapping[Modality, int], settings: ServeSettings) -> Asked:
    """What a JSON body asks. ``widths``: modality -> columns of the features that the run reads.

    Raises Refusal: 400 for what is not JSON, 422 for what cannot be used.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "malformed", "The request's body is not valid JSON; correct it.") from None
    if not isinstance(value, dict):
        raise unusable(f"The body is {_kind(value)}, and an object with text or features was expected.")
    for key in value:
        if key not in KEYS:
            near = did_you_mean(key, KEYS)
            raise unusable(f"A request has no {key[:40]!r}{near}; it has {', '.join(KEYS)}.")
    text, evidence = _text(value, settings), value.get("evidence", True)
    if not isinstance(evidence, bool):
        raise unusable(f"evidence is {_kind(evidence)}, and true or false was expected.")
    streams = _streams(value.get("features"), widths, settings)
    if not text and not streams:
        raise unusable("The request has neither a text nor features; send at least one of them.")
    absent: dict[Modality, str] = {m: "It was not part of the request." for m in MODALITIES if m not in streams}
    if text:
        absent.pop("text", None)
    clip = ExtractedClip(
        id=_id(value.get("id", "request")), path="", seconds=0.0, text=text, text_source="given" if text else "",
        streams=streams, absent=absent,
    )  # fmt: skip
    return Asked(clip, evidence, "features" if streams else "text")


def _text(value: Mapping[str, Any], settings: ServeSettings) -> str:
    text = value.get("text")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise unusable(f"text is {_kind(text)}, and a string was expected.")
    return check_text(text, settings)


def check_text(text: str, settings: ServeSettings) -> str:
    """``text`` without space around it. Raises Refusal where it is too long or not text (422)."""
    if len(text) > settings.characters:
        raise unusable(f"The text has {len(text)} characters, and at most {settings.characters} are read; shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise unusable("The text holds half a character (a lone surrogate); send valid Unicode.") from None
    return text.strip()


def _id(given: Any) -> str:
    if not isinstance(given, str) or len(given) > 200:
        raise unusable("id is not a string of at most 200 characters; shorten it or leave it out.")
    return given


def _streams(
    given: Any, widths: Mapping[Modality, int], settings: ServeSettings
) -> dict[Modality, np.ndarray]:  # fmt: skip
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise unusable(f"features is {_kind(given)}, and an object of modality -> rows was expected.")
    unknown = [name for name in given if name not in widths]
    if unknown:
        have = ", ".join(f"{m} ({width} columns)" for m, width in widths.items()) or "none"
        raise unusable(f"The run reads no features called {unknown[0][:40]!r}; it reads {have}.")
    return {m: _stream(m, given[m], widths[m], settings) for m in MODALITIES if m in given}


def _stream(modality: Modality, rows: Any, width: int, settings: ServeSettings) -> np.ndarray:
    """(T, width) float32 of a list of T lists."""
    expected = f"a list of steps with {width} numbers each was expected"
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise unusable(f"features.{modality} is not a list of lists, and {expected}.")
    if not 1 <= len(rows) <= settings.steps:
        raise unusable(f"features.{modality} has {len(rows)} steps; 1 to {settings.steps} are read.")
    wrong = next((n for n, row in enumerate(rows) if len(row) != width), None)
    if wrong is not None:
        raise unusable(f"features.{modality} has {len(rows[wrong])} numbers in step {wrong}, and {expected}.")
    if not all(type(cell) in (int, float) for row in rows for cell in row):
        raise unusable(f"features.{modality} holds something else than numbers, and {expected}.")
    try:
        with np.errstate(over="ignore"):
            values = np.array(rows, dtype=np.float64).astype(np.float32)
    except OverflowError:
        values = np.full((1, 1), np.inf, np.float32)
    if not np.isfinite(values).all():
        raise unusable(f"features.{modality} holds numbers that are not finite, and {expected}.")
    return values


def _kind(value: Any) -> str:
    """What JSON calls the type of ``value``."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
