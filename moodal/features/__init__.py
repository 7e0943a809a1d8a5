"""From words and waveforms to numbers: one extractor a class, listed in one table."""

from __future__ import annotations

from moodal.data.extractors import EXTRACTORS

__all__ = ["EXTRACTORS"]
