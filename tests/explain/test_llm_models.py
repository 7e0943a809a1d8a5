"""Real models, tiny and random: in this process, and behind a real ``transformers serve``."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llm_server import GOOD, small_store, write_clip
from tiny_vlm import answers, save_llama, save_llava, save_qwen

from moodal.data.store import open_store
from moodal.explain.llm.generate import explain_store
from moodal.explain.llm.join import join_explanations, read_answers
from moodal.explain.llm.limits import Budget
from moodal.explain.llm.local import LocalBackend
from moodal.explain.llm.material import packed
from moodal.explain.llm.question import Answer, BudgetSpent, Question, Unanswered, Unreachable
from moodal.explain.llm.settings import ExplainSettings, LLMSettings

pytest.importorskip("transformers")
SAID = answers()


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava", SAID)


@pytest.fixture(scope="module")
def store_and_media(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("clips")
    for n in range(3):
        write_clip(home / "media" / "video" / f"{n}.mp4", seconds=1.0 + n / 4)
    return small_store(home / "store", 3), home / "media"


def ask(settings: LLMSettings, *questions: Question, budget: Budget | None = None) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        async with LocalBackend(settings, budget=budget) as backend:
            return [await backend.ask(question) for question in questions]

    return asyncio.run(all_of_them())


def question(level: int, words: str = "w1 w2", count: int = 2) -> Question:
    pictures = [
        packed(np.random.default_rng(level + n).integers(0, 255, (40, 60, 3), dtype=np.uint8)) for n in range(count)
    ]
    return Question(system="w3", parts=(*pictures, words))


# ---- in this process


def test_a_model_of_this_process_sees_pictures_and_words(llava: Path):
    settings = LLMSettings(model=str(llava), max_tokens=1)
    several = [question(n, f"w{n} w{2 * n}") for n in range(12)]
    found = ask(settings, *several)
    assert {answer.text for answer in found} <= set(SAID) and len({answer.text for answer in found}) > 1
    assert [answer.text for answer in ask(settings, *several)] == [answer.text for answer in found]
    assert found[0].finish == "length" and found[0].answer_tokens == 1
    words = Question(system="w3", parts=("w1 w2",))
    assert found[0].asked_tokens == ask(settings, words)[0].asked_tokens + 2 * 16  # patches of 8 in 32 x 32
    drawn = LLMSettings(model=str(llava), max_tokens=1, temperature=2.0, seed=5)
    assert ask(drawn, *several) and [a.text for a in ask(drawn, *several)] == [a.text for a in ask(drawn, *several)]


def test_qwen_needs_no_torchvision(tmp_path: Path):
    """Its processor has a part for videos that cannot be built without; pictures do not need it."""
    folder = save_qwen(tmp_path / "tiny-qwen", SAID)
    found = ask(
        LLMSettings(model=str(folder), max_tokens=1), question(1), question(2), Question(system="w3", parts=("w1",))
    )
    assert {answer.text for answer in found} <= set(SAID)
    assert found[0].asked_tokens == found[1].asked_tokens > found[2].asked_tokens + 2


def test_a_model_of_text_checks_what_another_saw(llava: Path, store_and_media: tuple[Path, Path], tmp_path: Path):
    store, media = store_and_media
    checked = json.dumps({**GOOD, "comment": "checked"})
    thinker = save_llama(tmp_path / "tiny-llama", [checked])
    settings = ExplainSettings(
        describe=LLMSettings(model=str(llava), max_tokens=1, frames=2),
        refine=LLMSettings(model=str(thinker), max_tokens=1),
    )
    report = explain_store(store, settings=settings, media=media, out=tmp_path / "a.jsonl")
    assert report.done == 3 and report.asked == 6 and not report.stopped
    raw, joined = join_explanations(open_store(store), tmp_path / "a.jsonl")
    assert joined.by == "llm:tiny-llava+tiny-llama:describe-1+refine-1" and joined.texts["comment"] == 3
    assert {clip.explanations["comment"] for clip in raw.clips} == {"checked"}
    assert str(tmp_path) not in (tmp_path / "a.jsonl").read_text()


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(Unreachable, match=r"'nobody/nothing' could not be loaded into this process .*base_url"):
        ask(LLMSettings(model="nobody/nothing"), question(1))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Unreachable, match="could not be loaded"):
        ask(LLMSettings(model=str(tmp_path)), question(1))


def test_a_question_that_the_model_cannot_take_is_told(llava: Path):
    with pytest.raises(Unanswered, match="the model failed on this question"):
        ask(LLMSettings(model=str(llava), max_tokens=1), Question(system="w3", parts=("<image> w1",)))


def test_a_model_of_this_process_keeps_the_budget(llava: Path):
    budget = Budget(most_requests=1)
    with pytest.raises(BudgetSpent):
        ask(LLMSettings(model=str(llava), max_tokens=1), question(1), question(2), budget=budget)
    assert budget.requests == 1 and 32 < budget.tokens < 200


# ---- behind a real server


@pytest.fixture(scope="module")
def served(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``transformers serve`` with the tiny model."""
    for package in ("accelerate", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    log = tmp_path_factory.mktemp("served") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", str(llava), "--host", "127.0.0.1", "--port", str(port)],
            stdout=out, stderr=out, env=environment,
        )  # fmt: skip
    try:
        until = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_a_real_server_explains_a_store(served: str, llava: Path, store_and_media: tuple[Path, Path], tmp_path: Path):
    store, media = store_and_media
    model = LLMSettings(model=str(llava), base_url=served, max_tokens=1, frames=2, timeout=120.0)
    out = tmp_path / "a.jsonl"
    report = explain_store(store, settings=ExplainSettings(describe=model, refine=model), media=media, out=out)
    assert (report.done, report.asked, report.requests, report.stopped) == (3, 6, 6, "")
    _, records = read_answers(out)
    assert all(record.answer in SAID and record.counted and record.tokens[1] == 1 for record in records)
    seen = [record for record in records if record.stage == "describe"]
    assert all(record.shown["pictures"] == 2 for record in seen)
    # Two pictures of 16 tokens each reached the model: the same clip without them is so much shorter.
    bare = LLMSettings(model=str(llava), base_url=served, max_tokens=1, frames=0, timeout=120.0)
    explain_store(store, settings=ExplainSettings(describe=bare), media=media, out=tmp_path / "bare.jsonl")
    alone = {record.clip: record.tokens[0] for record in read_answers(tmp_path / "bare.jsonl")[1]}
    assert all(record.tokens[0] > alone[record.clip] + 32 for record in seen)
    raw, joined = join_explanations(open_store(store), out)
    assert joined.by == "llm:tiny-llava:describe-1+refine-1" and joined.texts == {"audio": 0, "vision": 3, "comment": 3}
    assert all(clip.explanations["vision"].startswith("face ") for clip in raw.clips)
    assert (
        explain_store(store, settings=ExplainSettings(describe=model, refine=model), media=media, out=out).requests == 0
    )


def test_a_real_server_says_when_it_does_not_know_the_model(
    served: str, store_and_media: tuple[Path, Path], tmp_path: Path
):
    wrong = LLMSettings(model="another", base_url=served, timeout=60.0)
    report = explain_store(
        store_and_media[0], settings=ExplainSettings(describe=wrong), media=None, out=tmp_path / "a.jsonl"
    )
    assert report.done == 0 and "does not answer for model 'another'" in report.stopped and "pinned" in report.stopped


def test_a_real_server_gives_what_the_same_model_gives_in_this_process(served: str, llava: Path):
    from moodal.explain.llm.server import ServerBackend

    several = [question(n, f"w{n} w{3 * n}") for n in range(6)]

    async def over_there() -> list[Answer]:
        async with ServerBackend(LLMSettings(model=str(llava), base_url=served, max_tokens=1, timeout=60.0)) as backend:
            return [await backend.ask(asked) for asked in several]

    there, here = asyncio.run(over_there()), ask(LLMSettings(model=str(llava), max_tokens=1), *several)
    assert [(a.text, a.asked_tokens) for a in there] == [(a.text, a.asked_tokens) for a in here]
