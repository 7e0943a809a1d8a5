"""Checks our copies of released evaluation code against numbers recorded from that code.

A case is ``<case>.safetensors`` with ``input.prediction`` and ``input.label``, and ``<case>.json`` whose ``values``
hold, for each ``"<code>.<data set>"``, the scores "rounded" as the release returns them and "exact" before
rounding. "nan" stands for not-a-number; a lone word in place of scores is the exception the release stops with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moodal.core.errors import did_you_mean
from moodal.metrics.checks import MetricError
from moodal.metrics.published import PUBLISHED, Published, exact, rounded


class Check(NamedTuple):
    """One comparison: the largest difference over its keys (infinite for a missing key), what is allowed, a verdict."""

    name: str
    difference: float
    tolerance: float
    ok: bool


def check_case(path: str | Path) -> list[Check]:
    """Compare one case, given its json or its path without ending; two checks for each ``"<code>.<data set>"``."""
    facts, tensors = _read(Path(path))
    classes = facts["config"]["kind"] == "classification"
    checks: list[Check] = []
    for name, recorded in facts["values"].items():
        function = _function(f"{name.lower()}{'.classification' if classes else ''}")
        checks += _compare(name, recorded, function=function, tensors=tensors, tolerance=facts["tolerance"])
    return checks


def _read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    from safetensors.numpy import load_file  # at use: only parity reads such files

    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    for file in (Path(f"{stem}.json"), Path(f"{stem}.safetensors")):
        if not file.is_file():
            raise MetricError(
                f"There is no {file.name} in {file.parent}; a case is a json and a safetensors of the same name."
            )
    return json.loads(Path(f"{stem}.json").read_text("utf-8")), load_file(f"{stem}.safetensors")


def _function(name: str) -> Published:
    if name not in PUBLISHED:
        hint = did_you_mean(name, PUBLISHED)
        raise MetricError(f"There is no published metric '{name}'; known: {', '.join(PUBLISHED)}{hint}")
    return PUBLISHED[name]


def _compare(
    name: str,
    recorded: str | Mapping[str, Any],
    *,
    function: Published,
    tensors: Mapping[str, npt.NDArray[Any]],
    tolerance: Mapping[str, float],
) -> list[Check]:
    """The checks of one entry: one for an exception, else one for each of "rounded" and "exact"."""
    parts = {"exception": recorded} if isinstance(recorded, str) else recorded
    try:
        scores = function(tensors["input.prediction"], tensors["input.label"])
        ours: Mapping[str, dict[str, float] | None] = {"rounded": rounded(scores), "exact": exact(scores)}
    except (MetricError, ValueError, IndexError):  # the release stops there too, or the case fails below
        ours = {}
    allowed = {part: float(tolerance.get(part, 0.0)) for part in parts}
    return [
        _verdict(f"{name} {part}", expected, ours.get(part), tolerance=allowed[part], stopped=not ours)
        for part, expected in parts.items()
    ]


def _verdict(
    name: str,
    expected: str | Mapping[str, Any],
    found: Mapping[str, float] | None,
    *,
    tolerance: float,
    stopped: bool,
) -> Check:
    if isinstance(expected, str):  # the name of an exception: right if we refuse the input as well
        return Check(name, 0.0 if stopped else math.inf, tolerance, stopped)
    if found is None or set(found) != set(expected):
        return Check(name, math.inf, tolerance, False)
    worst = max((_distance(found[key], float(value)) for key, value in expected.items()), default=0.0)
    return Check(name, worst, tolerance, worst <= tolerance)


def _distance(found: float, expected: float) -> float:
    """Absolute difference; two NaN agree, and nothing else agrees with NaN."""
    if math.isnan(found) or math.isnan(expected):
        return 0.0 if math.isnan(found) and math.isnan(expected) else math.inf
    return 0.0 if found == expected else float(np.abs(found - expected))
