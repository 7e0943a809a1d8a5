"""The list of traps names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "traps.md"
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str):
    (found,) = TESTS.rglob(file)
    assert re.search(rf"^def {name}\(", found.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_trap_names_one():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith("| trap |")]
    assert rows and all("::test_" in line.split("|")[4] for line in rows)
