"""Other people's files: official checkpoints, parity fixtures, the field's pickles."""

from __future__ import annotations

from moodal.core.registry import Table

#: Method -> function from an official state dict to a ``Converted``.
CONVERTERS = Table("checkpoint converter", {"text": "moodal.interop.official:convert_text"})
