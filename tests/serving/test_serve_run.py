"""A run trained in seconds, behind the server: features in, the predictor's own answers out, alone or in company."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import toys
from serving_toys import client

from moodal.build import train
from moodal.methods.text import TextConfig
from moodal.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, toy_data, one_thread) -> Predictor:
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg = toys.toy_config(method="text", model=TextConfig(**toys.TINY_TEXT), epochs=1)
    train(cfg, folder=folder, data=toy_data)
    return Predictor.open(folder)


@pytest.fixture(scope="module")
def served(predictor):
    with client(predictor, make=None, batch=16, batch_wait=0.2) as found:
        yield found


def bodies(predictor: Predictor, count: int) -> list[dict]:
    draw = np.random.default_rng(0)
    return [
        {"features": {m: draw.normal(size=(3 + n % 5, r.width)).tolist() for m, r in predictor.recipes.items()}}
        for n in range(count)
    ]


def test_batched_answers_equal_single_ones(served, predictor):
    asked = bodies(predictor, 16)
    single = [served.post("/predict", json=body).json() for body in asked]
    with ThreadPoolExecutor(16) as threads:
        together = [a.json() for a in threads.map(lambda body: served.post("/predict", json=body), asked)]
    for one, other in zip(single, together, strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-5) and one["gates"] == pytest.approx(
            other["gates"], abs=1e-5
        )
        assert one["change"] == pytest.approx(other["change"], abs=1e-5)
    text = served.get("/metrics").text
    assert 'moodal_batch_rows_bucket{le="1.0"} 17.0' not in text and len({one["value"] for one in single}) == 16


def test_health_tells_the_run_and_its_widths(served, predictor):
    health = served.get("/health").json()
    assert health["run"]["method"] == "text" and health["run"]["corpus"] == "synthetic"
    assert {m: f["width"] for m, f in health["features"].items()} == {m: r.width for m, r in predictor.recipes.items()}


def test_one_modality_is_enough_and_its_absence_is_told(served, predictor):
    for modality in predictor.recipes:
        body = {"features": {modality: bodies(predictor, 1)[0]["features"][modality]}}
        answer = served.post("/predict", json=body)
        assert answer.status_code == 200 and np.isfinite(answer.json()["value"])
        assert modality not in answer.json()["absent"] and len(answer.json()["absent"]) == 2


def test_a_run_whose_features_nothing_here_makes_says_so_of_a_clip(served):
    answer = served.post("/predict", files={"clip": ("a.wav", b"RIFF")})
    assert answer.status_code == 422 and answer.json()["error"].endswith(".")
