"""Every recorded case of the authors' own code, for every method that has a line in ``CHECKS``."""

from __future__ import annotations

from pathlib import Path

import pytest

from moodal.interop.parity import CHECKS, check_file

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "parity"
CASES = sorted(f"{path.parent.name}/{path.stem}" for name in CHECKS for path in (FOLDER / name).glob("*.json"))


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the recorded cases (shared/parity) are not beside the repository")
def test_every_method_with_checks_has_cases():
    assert {case.partition("/")[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_official_code(case: str):
    result = check_file(FOLDER / f"{case}.safetensors")
    assert result.ok, [quantity for quantity in result.quantities if not quantity.ok]
