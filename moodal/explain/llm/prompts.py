"""Prompts are files with a name, a version and a hash; an answer records which one it answers.

A file holds ``## system`` and ``## user`` parts with ``$names`` to fill in. A changed prompt is a new file with the next
number, so that what older answers were asked stays readable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from string import Template

from moodal.core.errors import MoodalError

#: Stage -> the version in use.
CURRENT = {"describe": 1, "refine": 1, "score": 1, "score-text": 1, "class": 1, "class-text": 1, "again": 1}


@dataclass(frozen=True)
class Prompt:
    """One version of one prompt."""

    name: str
    version: int
    system: str
    user: str
    sha256: str

    @property
    def tag(self) -> str:
        """As in ``explained_by``: "describe-1"."""
        return f"{self.name}-{self.version}"

    def fill(self, **values: str) -> tuple[str, str]:
        """(system, user) with every ``$name`` replaced. Raises KeyError if one is not given."""
        return Template(self.system).substitute(values), Template(self.user).substitute(values)


def load(name: str, version: int | None = None) -> Prompt:
    """The prompt ``name``, of ``version`` or the one in use. Raises ``MoodalError`` if there is none."""
    number = CURRENT.get(name, 1) if version is None else version
    file = resources.files("moodal.explain.llm") / "prompts" / f"{name}-{number}.txt"
    if not file.is_file():
        raise MoodalError(f"There is no prompt {name}-{number}; known: {', '.join(sorted(CURRENT))}.")
    data = file.read_bytes()
    head, _, user = data.decode("utf-8").partition("## user\n")
    system = head.partition("## system\n")[2]
    return Prompt(name, number, system.strip(), user.strip(), hashlib.sha256(data).hexdigest())
