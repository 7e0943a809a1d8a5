"""Metrics: pure functions from NumPy arrays to floats, and ``score``, which knows the conventions of each corpus."""

from __future__ import annotations

from moodal.metrics.checks import MetricError
from moodal.metrics.protocol import PROTOCOLS, Protocol, protocol_named, score

__all__ = ["PROTOCOLS", "MetricError", "Protocol", "protocol_named", "score"]
