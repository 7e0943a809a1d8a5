"""The single table of feature extractors, by name, so that readers can ask for one without importing ``features``."""

from __future__ import annotations

from moodal.core.registry import Table

EXTRACTORS = Table("extractor", {"librosa_33": "moodal.features.audio:Librosa33"})
