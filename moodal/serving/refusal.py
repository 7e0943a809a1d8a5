"""Answers other than a prediction: a status, a short kind for programs and a sentence for people."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is not served. ``retry_after``: seconds after which it may be (429, 503)."""

    def __init__(self, status: int, kind: str, sentence: str, *, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.sentence, self.retry_after = status, kind, sentence, retry_after

    def body(self) -> dict[str, str]:
        """What the client reads."""
        return {"kind": self.kind, "error": self.sentence}

    def headers(self) -> dict[str, str]:
        """``Retry-After`` where trying again makes sense."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def unusable(sentence: str) -> Refusal:
    """422: the request was understood, and what it holds cannot be used."""
    return Refusal(422, "unusable", sentence)


def too_large(sentence: str) -> Refusal:
    """413."""
    return Refusal(413, "too_large", sentence)


def too_slow(sentence: str) -> Refusal:
    """504: the time for a request ran out on this side."""
    return Refusal(504, "too_slow", sentence)


def busy(sentence: str, *, retry_after: int) -> Refusal:
    """429: as much is waiting as may wait."""
    return Refusal(429, "busy", sentence, retry_after=retry_after)


def starting(sentence: str) -> Refusal:
    """503: not ready yet, or stopping."""
    return Refusal(503, "unavailable", sentence, retry_after=5)
