"""A folder of clips of one's own: what ``moodal extract`` made of it and of its table of labels.

Source   the store of ``moodal extract FOLDER --labels labels.csv --out STORE``; it says what the task is.
Labels   one number a clip, or one class a clip.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from moodal.core.errors import DataError
from moodal.core.spec import Regression, Task
from moodal.data.corpus import CorpusFacts, RawCorpus, ReaderConfig
from moodal.data.store import is_store, open_store, verify_store
from moodal.data.stored import StoredConfig

NAME = "folder"
#: What holds before a store is opened: its own facts replace these.
FACTS = CorpusFacts(
    name=NAME,
    title="a folder of clips",
    language="en",
    task=Regression(low=-1.0, high=1.0),
    protocol="avec",
    source="a folder of clips and a table of labels",
    licence="not stated",
)
#: Scales whose accuracies are defined -> their protocol; "avec" (agreement, correlation, error) fits any other.
_SCALES = {(-3.0, 3.0): "mosi", (-1.0, 1.0): "sims", (1.0, 7.0): "pom", (1.0, 5.0): "pom_traits"}


def folder_facts(task: Task, *, language: str = "en", source: str = "", licence: str = "") -> CorpusFacts:
    """The facts of a folder whose labels are ``task``; its protocol follows from the classes or from the scale."""
    protocol = _SCALES.get((task.low, task.high), "avec") if isinstance(task, Regression) else "emotion"
    return replace(
        FACTS,
        task=task,
        protocol=protocol,
        language=language,
        source=source or FACTS.source,
        licence=licence or FACTS.licence,
    )


class Folder:
    """The store at ``data.root``, with the facts and the task that its manifest tells."""

    Config: ClassVar[type[ReaderConfig]] = StoredConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:  # noqa: ARG004 (nothing here is worth caching)
        """Open the store; raises ``DataError`` saying how to make it where there is none."""
        how = "Make one with: moodal extract CLIPS --labels labels.csv --out STORE, then set data.root=STORE."
        if root is None:
            raise DataError(f"{NAME}: data.root is not set; point it to a store. {how}")
        if not is_store(root):
            found = (
                "holds no store" if root.is_dir() else "is a file, not a store" if root.exists() else "does not exist"
            )
            raise DataError(f"{NAME}: {root} {found} (a folder with manifest.json). {how}")
        if cfg.verify:
            verify_store(root)
        return open_store(root, corpus=NAME)
