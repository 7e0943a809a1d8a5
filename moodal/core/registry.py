"""Tables of names: each entry is imported on first use, unknown names get a suggestion."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from moodal.core.errors import MoodalError, did_you_mean


class Table(Mapping[str, Any]):
    """Name -> object, written as ``"module:Object"`` and imported when it is asked for.

    ``kind`` is the word used in error messages ("method", "corpus").
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise MoodalError(f"There is no {self.kind} '{name}'; known: {known}{did_you_mean(name, self._entries)}")
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def module(self, name: str) -> str:
        """The dotted module that holds ``name``, without importing it."""
        return self._entries[name].partition(":")[0]
