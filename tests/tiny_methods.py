"""Every method small enough for a test, and without what is random in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toys import TINY_TEXT

#: settings that make a method tiny; a method that is not here is tested with its defaults.
TINY: Mapping[str, Mapping[str, Any]] = {
    "text": TINY_TEXT,
}
#: settings that switch off what is random in training.
STILL: Mapping[str, Mapping[str, Any]] = {
    "text": {"noise": False, "head_dropout": 0.0},
}
