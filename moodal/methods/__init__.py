"""The single table of methods: the command line, documentation, tests and benchmarks all read it."""

from __future__ import annotations

from moodal.core.registry import Table

METHODS = Table("method", {"text": "moodal.methods.text:TEXT"})
