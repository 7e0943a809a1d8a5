"""moodal: multimodal sentiment and emotion, from a video clip to a score with reasons."""

from __future__ import annotations

__version__ = "0.1.0"
