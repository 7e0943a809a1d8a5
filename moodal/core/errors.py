"""One family of errors. Each message is a sentence: what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MoodalError(ValueError):
    """A fault of the user's input or environment. The command line prints its text and exits with code 2."""


class ConfigError(MoodalError):
    """One or more faults of a configuration, reported together."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(MoodalError):
    """A file or corpus does not hold what it should."""


class MissingExtra(MoodalError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed, and this needs it. Install it: pip install 'moodal[{extra}]'")


class Interrupted(Exception):
    """Training stopped at the user's request after saving. Not a fault."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def check(condition: bool, message: str) -> None:
    """Raise ``MoodalError(message)`` unless ``condition`` holds: for values that come from a user."""
    if not condition:
        raise MoodalError(message)
