"""Finished clips on disk, one small file each, so that a killed extraction goes on where it stood.

``<key>.npz`` holds a clip and ``<key>.fault.json`` the sentence of a faulty one. The key is a checksum of all that the
result depends on: the content of the file (and of a transcript or table beside it), the span, the given text, the extractors.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.files import aside, held, plain, sha256, write_json
from moodal.core.spec import MODALITIES
from moodal.data.corpus import FeatureRecipe
from moodal.features.clip import ClipSettings, ExtractedClip
from moodal.features.worklist import Item

#: Changes when results of the same recipes change, so that older ones are not read.
FORM = "1"
#: Files beside a clip that hold its transcript, or what another program measured of it.
SIDECARS = (".srt", ".vtt", ".txt", ".csv")
_FACTS, _CONFIDENCE = "facts", "confidence"


@dataclass(frozen=True)
class Key:
    """Of a clip: the name of its result, and the SHA-256 of its file."""

    name: str
    content: str


@dataclass(frozen=True)
class KeptFault:
    """Why a clip gave nothing. ``kind``: "file" (its own fault), "limit" (too slow) or "unexpected"."""

    kind: str
    sentence: str
    limit: float = 0.0


class WorkFolder:
    """The folder ``path``; any number of processes may write to it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = path / "scratch"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder; what a killed run left half-done is removed. Raises ``MoodalError`` if another run holds it."""
        busy = f"another extraction works in {self.path}; wait for it, stop it, or write to another store."
        with held(self.path / "lock", busy):
            self._clean()
            try:
                yield
            finally:
                self._clean()

    def _clean(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        for half_written in self.path.glob(".*"):
            half_written.unlink(missing_ok=True)

    def key(self, path: Path, item: Item, made: str) -> Key:
        """The key of ``item``, whose file is ``path``, for extractors described by ``made``. Raises OSError."""
        content = sha256(path)
        beside = {end: sha256(side) for end in SIDECARS if (side := path.with_suffix(end)) != path and side.is_file()}
        parts = [FORM, made, content, beside, item.start, item.end, item.text, item.language, path.suffix.lower()]
        return Key(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40], content)

    def save(self, key: Key, clip: ExtractedClip) -> None:
        """Write the result of a clip, whole or not at all."""
        arrays = {f"stream.{m}": values for m, values in clip.streams.items()}
        arrays |= {f"times.{m}": values for m, values in clip.times.items()}
        if clip.confidence is not None:
            arrays[_CONFIDENCE] = clip.confidence
        facts = {
            "seconds": clip.seconds, "text": clip.text, "words": clip.words, "text_source": clip.text_source,
            "text_timing": clip.text_timing, "absent": clip.absent, "notes": clip.notes, "spent": clip.spent,
        }  # fmt: skip
        arrays[_FACTS] = np.frombuffer(json.dumps(plain(facts)).encode(), np.uint8)
        with aside(self._clip(key)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        self._fault(key).unlink(missing_ok=True)

    def load(self, key: Key, *, id: str, path: str) -> ExtractedClip | None:
        """The clip as the row ``id`` of the file ``path``; None where its result is damaged, which is then removed."""
        try:
            with np.load(self._clip(key), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            facts: Mapping[str, Any] = json.loads(arrays.pop(_FACTS).tobytes())
            words = tuple((str(word), float(start), float(end)) for word, start, end in facts["words"])
            return ExtractedClip(
                **{**facts, "words": words, "notes": tuple(facts["notes"])},
                id=id,
                path=path,
                streams={m: arrays[f"stream.{m}"] for m in MODALITIES if f"stream.{m}" in arrays},
                times={m: arrays[f"times.{m}"] for m in MODALITIES if f"times.{m}" in arrays},
                confidence=arrays.get(_CONFIDENCE),
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            self._clip(key).unlink(missing_ok=True)
            return None

    def save_fault(self, key: Key, fault: KeptFault) -> None:
        """Remember why a clip gave nothing."""
        write_json(self._fault(key), asdict(fault))

    def fault(self, key: Key, *, limit: float) -> KeptFault | None:
        """What was remembered, unless it was too slow for a limit shorter than ``limit`` seconds."""
        try:
            fault = KeptFault(**json.loads(self._fault(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return None if fault.kind == "limit" and fault.limit < limit else fault

    def forget_faults(self) -> None:
        """So that all faulty clips are tried again."""
        for path in self.path.glob("*.fault.json"):
            path.unlink(missing_ok=True)

    def drop_halves(self, key: Key) -> None:
        """Remove what a killed process left of a result that it was writing."""
        for half_written in self.path.glob(f".{key.name}.*"):
            half_written.unlink(missing_ok=True)

    def _clip(self, key: Key) -> Path:
        return self.path / f"{key.name}.npz"

    def _fault(self, key: Key) -> Path:
        return self.path / f"{key.name}.fault.json"


def described(settings: ClipSettings, recipes: Mapping[Any, FeatureRecipe]) -> str:
    """All of the extractors that a result depends on, as text that is the same for the same."""
    made = {"recipes": {m: asdict(recipe) for m, recipe in recipes.items()}}
    made |= {"words": asdict(settings.words), "limits": asdict(settings.limits)}
    return json.dumps(plain(made), sort_keys=True)
