"""What a run may spend, and how fast: both shared by all questions in flight."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from moodal.explain.llm.question import BudgetSpent


@dataclass
class Budget:
    """Requests and tokens of one run; None: no limit.

    Tokens are reserved before a request by a guess and set right by its answer, so the limit can be passed only by what
    the guesses for requests in flight fell short.
    """

    most_requests: int | None = None
    most_tokens: int | None = None
    requests: int = 0
    tokens: int = 0

    def take(self, guess: int) -> None:
        """Reserve one request of about ``guess`` tokens; raises ``BudgetSpent`` if it does not fit."""
        if self.most_requests is not None and self.requests >= self.most_requests:
            raise BudgetSpent(
                f"The budget of {self.most_requests} requests is spent; run again with a larger one to go on from here."
            )
        if self.most_tokens is not None and self.tokens + guess > self.most_tokens:
            raise BudgetSpent(
                f"The next question may take {guess} tokens and {max(self.most_tokens - self.tokens, 0)} of the budget of "
                f"{self.most_tokens} are left; run again with a larger one to go on from here."
            )
        self.requests += 1
        self.tokens += guess

    def settle(self, guess: int, used: int) -> None:
        """Replace the guess of a request by what it used."""
        self.tokens += used - guess


class Pace:
    """Lets requests through at most ``per_minute`` (None: at once), and none while a server asked to wait."""

    def __init__(self, per_minute: float | None = None) -> None:
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for this request's turn."""
        while (wait := self._next - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        self._next = max(self._next, time.monotonic()) + self._gap

    def hold(self, seconds: float) -> None:
        """Let nothing through for ``seconds``."""
        self._next = max(self._next, time.monotonic() + seconds)
