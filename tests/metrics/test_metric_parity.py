"""Parity with the released evaluation code: the recorded cases, and that the checker can tell a difference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from moodal.metrics import MetricError
from moodal.metrics.parity import check_case
from moodal.metrics.published import PUBLISHED, exact, rounded

CASES = sorted((Path(__file__).parents[3] / "shared" / "parity" / "metrics").glob("*.json"))


@pytest.mark.skipif(not CASES, reason="the recorded numbers (shared/parity/metrics) are not here")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case(path):
    checks = check_case(path)
    recorded = json.loads(path.read_text())["values"]
    assert {check.name for check in checks} == {f"{name} {part}" for name in recorded for part in ("rounded", "exact")}
    assert [check for check in checks if not check.ok] == []
    assert check_case(path.with_suffix("")) == checks


def write(folder: Path, values: dict[str, Any], *, kind: str = "regression", rows: int = 37, label: Any = None) -> Path:
    """A case of the recorded format with random inputs; returns its path without ending."""
    random = np.random.default_rng(rows)
    label = np.round(random.uniform(-3, 3, (rows, 1)), 1).astype(np.float32) if label is None else label
    prediction = random.normal(size=(rows, 3 if kind == "classification" else 1)).astype(np.float32)
    facts = {"config": {"kind": kind, "samples": rows}, "values": values, "tolerance": {"exact": 1e-6, "rounded": 0}}
    (folder / "case.json").write_text(json.dumps(facts))
    save_file({"input.prediction": prediction, "input.label": label}, str(folder / "case.safetensors"))
    return folder / "case"


def ours(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """What the inputs of ``write`` score here."""
    from safetensors.numpy import load_file

    tensors = load_file(str(write(folder, {})) + ".safetensors")
    scores = PUBLISHED[name](tensors["input.prediction"], tensors["input.label"])
    return {"rounded": rounded(scores), "exact": exact(scores)}


def test_right_numbers_pass_and_a_wrong_digit_fails(tmp_path):
    values = ours(tmp_path, "mmsa.mosi")
    assert [check.ok for check in check_case(write(tmp_path, {"mmsa.MOSI": values}))] == [True, True]
    values["rounded"]["Has0_acc_2"] += 1e-4
    values["exact"]["MAE"] += 5e-6
    for check in check_case(write(tmp_path, {"mmsa.MOSI": values})):
        assert not check.ok and check.difference > check.tolerance
    values["exact"]["MAE"] -= 5e-6 - 5e-7
    assert [check.ok for check in check_case(write(tmp_path, {"mmsa.MOSI": values}))] == [False, True]


def test_nan_agrees_with_nan_only(tmp_path):
    values = ours(tmp_path, "text.sims")
    values["exact"]["Corr"] = "nan"
    first, second = check_case(write(tmp_path, {"text.SIMS": values}))
    assert first.ok and second.difference == math.inf and not second.ok


def test_missing_and_extra_keys_fail(tmp_path):
    values = ours(tmp_path, "text.mosi")
    del values["exact"]["Corr"]
    values["rounded"]["Acc_9"] = 0.5
    assert [check.ok for check in check_case(write(tmp_path, {"text.MOSI": values}))] == [False, False]


def test_an_exception_is_matched_by_refusal_only(tmp_path):
    zeros = np.zeros((37, 1), dtype=np.float32)
    recorded = {"mmsa.MOSI": "IndexError", "text.SIMS": "ValueError"}
    refused, answered = check_case(write(tmp_path, recorded, label=zeros))
    assert refused.ok and refused.name == "mmsa.MOSI exception" and not answered.ok
    nested = {"mmsa.MOSI": {"rounded": "IndexError", "exact": "IndexError"}}
    assert [check.ok for check in check_case(write(tmp_path, nested, label=zeros))] == [True, True]
    numbers = {"mmsa.MOSI": {"rounded": {"MAE": 1.0}, "exact": {"MAE": 1.0}}}
    assert [check.ok for check in check_case(write(tmp_path, numbers, label=zeros))] == [False, False]


def test_classification_cases_use_the_classification_code(tmp_path):
    label = np.arange(37, dtype=np.int64) % 3
    logits = np.random.default_rng(37).normal(size=(37, 3)).astype(np.float32)  # as ``write`` draws them
    scores = PUBLISHED["mmsa.sims.classification"](logits, label)
    values = {"mmsa.SIMS": {"exact": exact(scores)}}
    assert [check.ok for check in check_case(write(tmp_path, values, kind="classification", label=label))] == [True]
    assert [
        check.ok for check in check_case(write(tmp_path, values, kind="classification", label=label[::-1].copy()))
    ] == [False]


def test_faults(tmp_path):
    with pytest.raises(MetricError, match=r"There is no nothing\.json in .*; a case is a json and a safetensors"):
        check_case(tmp_path / "nothing")
    with pytest.raises(
        MetricError, match=r"no published metric 'mmsa.mossi'; known: mmsa.mosi, .*did you mean 'mmsa.mosi'"
    ):
        check_case(write(tmp_path, {"mmsa.MOSSI": {}}))
