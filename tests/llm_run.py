"""Explaining a store, as a process of its own that a test may kill."""

from __future__ import annotations

from pathlib import Path

from moodal.explain.llm.generate import explain_store
from moodal.explain.llm.settings import ExplainSettings, LLMSettings


def explain(store: str, out: str, url: str) -> None:
    settings = ExplainSettings(
        describe=LLMSettings(model="m", base_url=url, backoff=0.01, timeout=10.0, retries=1, frames=3)
    )
    explain_store(Path(store), settings=settings, media=None, out=Path(out))
