"""Readers of corpora that come as files of the field: imported once into a store, read from there ever after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moodal.core.errors import DataError
from moodal.data.corpus import CorpusFacts, RawCorpus, ReaderConfig
from moodal.data.store import is_store, open_store, verify_store


@dataclass(frozen=True, kw_only=True)
class StoredConfig(ReaderConfig):
    """``verify``: compare every checksum on opening (reads everything once)."""

    verify: bool = False


class StoredReader:
    """A corpus that is its facts: the store at ``root``, or at ``root/<corpus>``."""

    Config: ClassVar[type[ReaderConfig]] = StoredConfig
    facts: ClassVar[CorpusFacts]

    @classmethod
    def read(cls, root: Path | None, cfg: Any, cache: Path) -> RawCorpus:  # noqa: ARG003
        """Open the store; raises ``DataError`` saying how to make it where there is none."""
        path = find_store(root, cls.facts)
        if cfg.verify:
            verify_store(path)
        # The text of the facts (source, licence) is this version's; what was read is the store's.
        return replace(open_store(path, corpus=cls.facts.name), facts=cls.facts)


def find_store(root: Path | None, facts: CorpusFacts) -> Path:
    """The folder of the store: ``root`` or ``root/<name>``; raises ``DataError`` where neither is one."""
    name = facts.name
    if root is None:
        raise DataError(f"{name}: data.root is not set; point it to the folder of its store. {_how(facts)}")
    for path in (root / name, root):
        if is_store(path):
            return path
    found = "is a file, not a store" if root.is_file() else "holds no store" if root.is_dir() else "does not exist"
    raise DataError(f"{name}: {root} {found} (a folder with manifest.json). {_how(facts)}")


def _how(facts: CorpusFacts) -> str:
    return (
        f"Make one from the corpus's pickle file (see {facts.source}) with: "
        f"moodal import FILE.pkl --corpus {facts.name} --out FOLDER, then set data.root=FOLDER."
    )
