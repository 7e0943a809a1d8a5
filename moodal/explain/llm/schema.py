"""What an answer must hold, as a JSON schema for the server and as a check that finds the JSON in whatever came back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from moodal.core.spec import ROLES, Role

#: Most characters of one text: an answer that runs on is no explanation.
LONGEST = 2000


class ParseFault(ValueError):
    """An answer that cannot be used; its text is the reason, and is told to the model when it is asked again."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a model said about a clip; "" where it had nothing to go by. ``reason``: the clues it went through first."""

    audio: str
    vision: str
    comment: str
    reason: str = ""

    def texts(self) -> dict[Role, str]:
        """The texts by role, empty ones left out."""
        told: dict[Role, str] = {"audio": self.audio, "vision": self.vision, "comment": self.comment}
        return {role: told[role] for role in ROLES if told[role]}

    def as_json(self) -> dict[str, str]:
        """All fields, in the order of the schema."""
        return {"reason": self.reason, "audio": self.audio, "vision": self.vision, "comment": self.comment}


#: Field -> what it should hold. The clues come first: a model that writes them down first answers better.
FIELDS: Mapping[str, str] = {
    "reason": "The clues in words, voice and face, weighed against each other, in at most five sentences.",
    "audio": "One or two sentences on the voice and other sounds; empty if nothing is known of the sound.",
    "vision": "One or two sentences on face, gaze, posture and gesture; empty if nothing is known of the picture.",
    "comment": "One or two sentences: what the speaker feels, how strongly, and why one can tell.",
}

#: JSON schema of an explanation. All fields are required and no others allowed: strict servers accept nothing else.
EXPLANATION: Mapping[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "description": about} for name, about in FIELDS.items()},
    "required": list(FIELDS),
    "additionalProperties": False,
}


def parse_explanation(text: str) -> Explanation:
    """The explanation in ``text``: plain, fenced, or with talk around it. Raises ``ParseFault`` with the reason."""
    fault = ParseFault("there is no JSON object in it")
    for found in _objects(without_thought(text)):
        try:
            return _explanation(found)
        except ParseFault as reason:
            fault = reason
    raise fault


def without_thought(text: str) -> str:
    """``text`` without the <think> part that reasoning models put in front. Raises ``ParseFault`` if it never ends."""
    before, opened, _ = text.partition("<think>")
    if "</think>" in text:
        return text.rpartition("</think>")[2]
    if opened and "{" not in before:
        raise ParseFault("the thinking never ended in an answer")
    return text


def _explanation(found: Mapping[str, Any]) -> Explanation:
    texts = {}
    for name in FIELDS:
        if name not in found and name != "reason":  # a convenience of ours, not of the answer
            raise ParseFault(f"the key '{name}' is missing")
        value = found.get(name)
        if value is not None and not isinstance(value, str):
            raise ParseFault(f"'{name}' is {_kind(value)}; a string was expected")
        text = " ".join((value or "").split())
        if len(text) > LONGEST:
            raise ParseFault(f"'{name}' has {len(text)} characters; at most {LONGEST} were expected")
        texts[name] = text
    if not texts["comment"]:
        raise ParseFault("'comment' is empty")
    return Explanation(**texts)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in ``text``, outermost ones only, fenced ones first."""
    fenced = re.findall(r"```(?:\w+)?\s*\n?(.*?)```", text, re.DOTALL)
    for part in (*fenced[:_MOST_FENCES], text):
        end = 0
        for start in islice(_OPENING.finditer(part), _MOST_PLACES):
            if start.start() < end:
                continue  # inside an object that was looked at
            value, end = _decoded(part, start.start())
            if isinstance(value, dict):
                yield value


def _decoded(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at ``place`` and where it ends; None and ``place`` where there is none."""
    try:
        return _DECODER.raw_decode(text, place)
    except (json.JSONDecodeError, RecursionError):
        return None, place


#: Where an object may begin, and how many such places and fences are tried: a model that runs wild writes thousands.
_OPENING = re.compile(r'\{\s*"')
_MOST_PLACES, _MOST_FENCES = 200, 20
#: Line breaks inside strings are common in what models write, and harmless.
_DECODER = json.JSONDecoder(strict=False)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
    return names[type(value)]
