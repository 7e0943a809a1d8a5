"""The zero-shot baseline: a model's own scores, read from the stored answers and written as a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_server import LLMServer, Reply, refusal, small_store, words_of, write_clip

from moodal.bench.compare import compare_runs
from moodal.bench.runs import StoredRun
from moodal.core.errors import DataError, MoodalError
from moodal.data.store import open_store
from moodal.explain.llm.judge import judge_store, judgements, sources
from moodal.explain.llm.settings import AskSettings, JudgeSettings, LLMSettings
from moodal.metrics import score
from moodal.zero_shot import METHOD, zero_shot_run


def settings(server: LLMServer, *, frames: int = 2, attempts: int = 3) -> JudgeSettings:
    judge = LLMSettings(model="m", base_url=server.url, backoff=0.01, retries=0, frames=frames)
    return JudgeSettings(judge=judge, ask=AskSettings(attempts=attempts))


def number_of(body: dict[str, Any]) -> int:
    return int(words_of(body).split()[1])


def whole(body: dict[str, Any]) -> bool:
    """Whether the clip was shown, or only its words."""
    return "You are shown no picture" in json.dumps(body) or "You see" in json.dumps(body)


def test_numbers_become_predictions_in_the_order_of_the_corpus(tmp_path: Path):
    """Clip 1 is refused whole, 2 has no number in it, 4 none at all, 5 lies off the scale at first."""
    store, out = small_store(tmp_path / "store", 9), tmp_path / "scores.jsonl"

    def behaviour(n: int, body: dict[str, Any]) -> Reply:
        clip = number_of(body)
        if clip == 1 and whole(body):
            return refusal(400, "the request is too long")
        if clip == 2 and whole(body):
            return Reply(text="quite positive")
        if clip == 4:
            return Reply(text="positive")
        if clip == 5 and len(body["messages"]) == 2:
            return Reply(text="5")
        return Reply(text=f"{clip / 10:.1f} of 1" if whole(body) else "-0.5")

    with LLMServer(behaviour) as server:
        report = judge_store(store, settings=settings(server, attempts=2), media=None, out=out)
        first = server.said(0)
    assert report.clips == 6 and report.done == 5 and list(report.failed) == ["video/4"]
    assert "on a scale from -1 (" in first and "to 1 (" in first and "sentiment" in first and "Spoken words:" in first
    found = judgements(open_store(store), out)
    assert found["valid"].ids == ("video/1", "video/4", "video/7") and found["test"].ids == (
        "video/2",
        "video/5",
        "video/8",
    )
    np.testing.assert_allclose(found["valid"].prediction, [-0.5, 0.0, 0.7])
    np.testing.assert_allclose(found["test"].prediction, [-0.5, 0.5, 0.8])
    assert found["valid"].source == ("transcript", "default", "clip")
    assert sources(found)["test"] == {"transcript": 1, "clip": 2}


def test_the_scores_are_a_run_like_any_other(tmp_path: Path):
    store, out = small_store(tmp_path / "store", 12), tmp_path / "scores.jsonl"
    with LLMServer(lambda n, body: Reply(text=f"{-1 + 2 * number_of(body) / 11:.3f}")) as server:
        judge_store(store, settings=settings(server), media=None, out=out)
    done = zero_shot_run(store, out, runs=tmp_path / "runs")
    raw = open_store(store)
    made = judgements(raw, out)["test"]
    labels = [raw.clips[row].label for row in raw.positions("test")]
    assert done.scores["test"] == pytest.approx(score("mosi", made.prediction, labels), nan_ok=True)
    assert done.scores["test"]["mae"] < 0.01 < done.scores["baseline"]["test"]["mae"]
    run = StoredRun.open(done.folder)
    assert run.finished and not run.missing.keys() - {"history.csv", "inspection.safetensors"}
    assert (run.method, run.corpus, run.seed) == (METHOD, "own", 0) and run.config["model"]["name"] == "m"
    np.testing.assert_allclose(run.predictions["test"].prediction, made.prediction)
    assert done.scores["selection"]["sources"]["test"] == {"clip": 4}
    assert METHOD in compare_runs([tmp_path / "runs"]).markdown().replace("\\", "")
    assert zero_shot_run(store, out, runs=tmp_path / "runs").folder == done.folder
    with pytest.raises(MoodalError, match="holds a run already"):
        zero_shot_run(store, out, folder=done.folder)


def test_classes_are_named_and_scored(tmp_path: Path):
    names = ("neutral", "happy", "sad")
    store, out = small_store(tmp_path / "store", 9, classes=names), tmp_path / "scores.jsonl"
    write_clip(tmp_path / "media" / "video" / "2.mp4", seconds=0.6)
    with LLMServer(lambda n, body: Reply(text=f"The speaker is {names[number_of(body) % 3]}.")) as server:
        report = judge_store(store, settings=settings(server), media=tmp_path / "media", out=out)
        shown = {number_of(body): len(server.pictures(n)) for n, body in enumerate(server.requests)}
        assert "neutral, happy, sad" in server.said() and "emotion" in server.said()
    assert report.done == 6 and len(report.without_media) == 5 and shown == {1: 0, 2: 2, 4: 0, 5: 0, 7: 0, 8: 0}
    done = zero_shot_run(store, out, runs=tmp_path / "runs")
    assert done.scores["test"]["accuracy"] == 1.0
    table = StoredRun.open(done.folder).predictions["test"]
    assert table.probabilities is not None and table.probabilities.tolist() == np.eye(3)[[2, 2, 2]].tolist()


def test_answers_that_hold_no_scores_are_told(tmp_path: Path):
    store, out = small_store(tmp_path / "store"), tmp_path / "scores.jsonl"
    out.touch()
    with pytest.raises(DataError, match="holds no scores"):
        zero_shot_run(store, out, runs=tmp_path / "runs")
    with LLMServer(lambda n, body: Reply(text="0.1")) as server:
        judge_store(store, settings=settings(server), media=None, out=out)
        other = small_store(tmp_path / "other", 3, classes=("a", "b"))
        with pytest.raises(DataError, match="scores of 0 configurations"):
            judgements(open_store(other), out)
        judge_store(store, settings=settings(server, frames=3), media=None, out=out)
    with pytest.raises(DataError, match="scores of 2 configurations"):
        judgements(open_store(store), out)
    assert not (tmp_path / "runs").exists()
