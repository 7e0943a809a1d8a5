"""Explanations without a language model: sentences about what was measured, compared with the training clips.

No label is read. The same clip always gets the same text, and what cannot be measured is not mentioned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moodal.core.errors import MoodalError
from moodal.core.spec import ROLES, Role
from moodal.data.corpus import Clip, RawCorpus
from moodal.explain import face, lexicon, voice

#: What ``Clip.explained_by`` says of these texts; changes with the wording.
NAME = "measured-1"
_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class MeasuredExplainer:
    """Quantiles of the training clips: all that is needed to explain a clip.

    ``voice``: measure -> its values at ``voice.LIMITS``; ``face``: channel -> its values at 0, 1, ... 100 %.
    """

    voice: Mapping[str, tuple[float, ...]]
    face: Mapping[str, tuple[float, ...]]

    @classmethod
    def fit(cls, raw: RawCorpus) -> "MeasuredExplainer":
        """Take the quantiles from the clips of the training split."""
        train = raw.positions("train")
        heard, seen = voice.measure(raw), face.measure(raw)
        return cls(
            voice={
                name: limits for name, v in heard.items() if (limits := _quantiles(v[train], voice.LIMITS)) is not None
            },
            face={name: grid for name, v in seen.items() if (grid := _quantiles(v[train], _GRID)) is not None},
        )

    def explain(self, raw: RawCorpus) -> list[dict[Role, str]]:
        """The texts of every clip by role; a role of which nothing could be measured is left out."""
        texts: dict[Role, list[str]] = {
            "audio": self._voices(raw),
            "vision": self._faces(raw),
            "comment": lexicon.comments(raw.clips, raw.facts.language),
        }
        return [{role: texts[role][row] for role in ROLES if texts[role][row]} for row in range(len(raw.clips))]

    def _voices(self, raw: RawCorpus) -> list[str]:
        measured = voice.measure(raw)
        phrases = []
        for name, words in voice.WORDS.items():
            if name in self.voice and name in measured:
                level = np.searchsorted(self.voice[name], measured[name], side="left")
                phrases.append(np.where(np.isfinite(measured[name]), np.array(words)[np.minimum(level, 4)], ""))
        return [", ".join(filter(None, told)) for told in zip(*phrases)] if phrases else [""] * len(raw.clips)

    def _faces(self, raw: RawCorpus) -> list[str]:
        measured = {name: values for name, values in face.measure(raw).items() if name in self.face}
        if not measured:
            return [""] * len(raw.clips)
        present = np.all([np.isfinite(values) for values in measured.values()], axis=0)
        ranks = np.stack(
            [np.searchsorted(self.face[n], np.nan_to_num(v), side="left") / len(_GRID) for n, v in measured.items()],
            axis=1,
        )
        return face.tell(list(measured), ranks, present)

    def state(self) -> dict[str, Any]:
        """Plain lists: what a run stores, read back by :meth:`from_state`."""
        return {
            "name": NAME,
            "voice": {name: list(values) for name, values in self.voice.items()},
            "face": {name: list(values) for name, values in self.face.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "MeasuredExplainer":
        """The explainer of a run. Raises MoodalError when another version wrote it."""
        if state.get("name") != NAME:
            raise MoodalError(
                f"the run was explained by {state.get('name')}, and this version is {NAME}; "
                "open it with the version that made it."
            )
        voice_limits = {name: tuple(values) for name, values in state["voice"].items()}
        return cls(voice_limits, {name: tuple(values) for name, values in state["face"].items()})


def explain_corpus(raw: RawCorpus, explainer: MeasuredExplainer | None = None) -> RawCorpus:
    """``raw`` with texts where a clip has none of a role; those it brings stay.

    ``explainer``: that of a run; without it one is fitted on the training split of ``raw``.
    """
    fitted = MeasuredExplainer.fit(raw) if explainer is None else explainer
    texts = fitted.explain(raw)
    return replace(raw, clips=tuple(_filled(clip, new) for clip, new in zip(raw.clips, texts, strict=True)))


def _filled(clip: Clip, texts: Mapping[Role, str]) -> Clip:
    absent = {role: text for role, text in texts.items() if not clip.explanations.get(role, "").strip()}
    if not absent:
        return clip
    return replace(
        clip,
        explanations={**clip.explanations, **absent},
        explained_by={**clip.explained_by, **dict.fromkeys(absent, NAME)},
    )


def _quantiles(values: np.ndarray, shares: Any) -> tuple[float, ...] | None:
    """Quantiles of the finite ``values``; None where there are none or all are the same, so nothing can be compared."""
    finite = values[np.isfinite(values)]
    if not len(finite) or float(finite.min()) == float(finite.max()):
        return None
    return tuple(float(value) for value in np.quantile(finite, shares))
