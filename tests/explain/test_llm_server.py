"""The back end for servers, against a real HTTP server that misbehaves in every way that servers do."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import time
from typing import Any

import pytest
from llm_server import LLMServer, Reply, refusal

from moodal.core.errors import MissingExtra
from moodal.explain.llm.limits import Budget, Pace
from moodal.explain.llm.question import Answer, BudgetSpent, Medium, Question, Unanswered, Unreachable
from moodal.explain.llm.server import ServerBackend
from moodal.explain.llm.settings import LLMSettings

QUESTION = Question(system="be brief", parts=("how are you?",))
HELD = Question(system="be brief", parts=("how are you?",), schema={"type": "object"})


def settings(server: LLMServer, **given: Any) -> LLMSettings:
    return LLMSettings(**{"model": "m", "base_url": server.url, "backoff": 0.01, "timeout": 5.0, "retries": 3, **given})


def ask(server: LLMServer, question: Question = QUESTION, *, budget: Budget | None = None, **given: Any) -> Answer:
    async def once() -> Answer:
        async with ServerBackend(settings(server, **given), budget=budget) as backend:
            return await backend.ask(question)

    return asyncio.run(once())


def test_what_is_sent_and_what_comes_back():
    picture, sound, video = (
        Medium("image", "image/jpeg", b"\xff\xd8x"), Medium("audio", "audio/wav", b"RIFF"), Medium("video", "video/mp4", b"mp4"),
    )  # fmt: skip
    question = Question(
        system="s", parts=("a", picture, video, sound, "b"), schema={"type": "object"}, earlier=(("bad", "why"),)
    )
    with LLMServer([Reply(text="fine", message={"reasoning_content": "hm"}, finish="length")]) as server:
        answer = ask(server, question, max_tokens=7, temperature=0.5, seed=3, extra={"top_k": 2})
    assert (answer.text, answer.reasoning, answer.finish) == ("fine", "hm", "length")
    assert (answer.asked_tokens, answer.answer_tokens, answer.counted, answer.tries) == (100, 20, True, 1)
    (body,) = server.requests
    assert body["model"] == "m" and body["max_tokens"] == 7 and body["seed"] == 3 and body["top_k"] == 2
    assert body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": {"type": "object"}}
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    kinds = [part["type"] for part in body["messages"][1]["content"]]
    assert kinds == ["text", "image_url", "video_url", "input_audio", "text"]
    assert server.pictures() == ["data:image/jpeg;base64,/9h4"]


def test_text_alone_is_sent_as_text():
    with LLMServer() as server:
        ask(server)
    assert server.requests[0]["messages"][1] == {"role": "user", "content": "how are you?"}


@pytest.mark.parametrize(
    "fault",
    [
        refusal(500, "boom"),
        refusal(503, "loading"),
        refusal(429, "slow down"),
        Reply(status=502, body="<html>bad gateway</html>", headers={"Content-Type": "text/html"}),
        Reply(body="{not json"),
        Reply(body="<html>a proxy's page</html>", headers={"Content-Type": "text/html"}),
        Reply(body="{}"),
        Reply(body='{"choices": []}'),
        Reply(body="[]"),
        Reply(text=None),  # type: ignore[arg-type]
        Reply(cut=20),  # half an answer: fewer bytes than were announced
        Reply(cut=0),
    ],
    ids=[
        "500",
        "503",
        "429",
        "502-html",
        "bad-json",
        "html",
        "empty",
        "no-choice",
        "list",
        "no-text",
        "half",
        "nothing",
    ],
)
def test_a_fault_that_passes_is_tried_again(fault: Reply):
    with LLMServer([fault, fault, Reply(text="at last")]) as server:
        answer = ask(server)
    assert answer.text == "at last" and answer.tries == 3 and len(server.requests) == 3


def test_a_fault_that_stays_says_what_it_was():
    with (
        LLMServer([refusal(500, "boom")] * 9) as server,
        pytest.raises(Unanswered, match=r"no answer after 4 tries: HTTP 500 \(boom\)"),
    ):
        ask(server)
    assert len(server.requests) == 4


def test_no_answer_in_time_is_tried_again():
    with LLMServer([Reply(wait=1.0), Reply(text="now")]) as server:
        assert ask(server, timeout=0.3).text == "now"


def test_an_answer_that_trickles_does_not_go_on_for_ever():
    """A pause between two bytes is short; only the whole takes too long."""
    with LLMServer([Reply(drip=0.02), Reply(text="now")]) as server:
        assert ask(server, timeout=0.4).text == "now"
        with pytest.raises(Unanswered, match=r"nothing came within 0.3 s"):
            server.behaviour = lambda n, body: Reply(drip=0.02)
            ask(server, timeout=0.3, retries=0)


@pytest.mark.parametrize("form", ["number", "date"])
def test_the_wait_that_a_server_asks_for_is_kept_by_all(form: str):
    until = 1.0 if form == "number" else None

    def slow(n: int, body: dict[str, Any]) -> Reply:
        if n > 0:
            return Reply()
        value = "0.5" if until else email.utils.formatdate(time.time() + 2, usegmt=True)  # dates count whole seconds
        return refusal(429, "wait", **{"Retry_After": value})

    async def two(server: LLMServer) -> None:
        async with ServerBackend(settings(server, backoff=0.0)) as backend:
            first = asyncio.create_task(backend.ask(QUESTION))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await asyncio.gather(first, backend.ask(QUESTION))

    with LLMServer(slow) as server:
        asyncio.run(two(server))
    waited = [at - server.times[0] for at in server.times[1:]]
    assert len(waited) == 2 and min(waited) >= (0.45 if until else 0.9)


def test_requests_keep_the_pace():
    async def four(server: LLMServer) -> None:
        async with ServerBackend(settings(server, per_minute=600)) as backend:
            await asyncio.gather(*(backend.ask(QUESTION) for _ in range(4)))

    with LLMServer() as server:
        asyncio.run(four(server))
    gaps = [after - before for before, after in zip(server.times, server.times[1:])]
    assert sum(gaps) >= 0.25  # three gaps of 0.1 s, less what a busy machine takes from their ends


def test_a_server_without_schemas_is_asked_in_words():
    def picky(n: int, body: dict[str, Any]) -> Reply:
        return refusal(400, "response_format is not supported") if "response_format" in body else Reply()

    async def two(server: LLMServer) -> None:
        async with ServerBackend(settings(server)) as backend:
            await backend.ask(HELD)
            await backend.ask(HELD)

    with LLMServer(picky) as server:
        asyncio.run(two(server))
        assert ["response_format" in body for body in server.requests] == [True, False, False]
        with pytest.raises(Unanswered, match="refused the question"):
            ask(server, HELD, schema="schema")
        server.requests.clear()
        ask(server, HELD, schema="none")
        assert "response_format" not in server.requests[0]


# ---- wrong address, key, model: one sentence each


def test_a_wrong_address_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}/v1"
        with LLMServer() as server, pytest.raises(Unreachable) as told:
            ask(server, base_url=url, retries=9, backoff=5.0)
    assert str(told.value).startswith("No server answers at http://127.0.0.1:") and "base_url" in str(told.value)
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_a_refused_key_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OWN_KEY", "sk-very-secret")
    no = refusal(401, "Incorrect API key provided: sk-very-secret")
    for server in (LLMServer(models=no), LLMServer([no], models=refusal(404, "no list"))):
        with server, pytest.raises(Unreachable, match=r"refused the key in \$OWN_KEY") as told:
            ask(server, key="OWN_KEY")
        assert "sk-very-secret" not in str(told.value) and "***" in str(told.value)


def test_the_key_is_sent_and_no_other_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-this-server")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-not-for-this-server")
    monkeypatch.setenv("OWN_KEY", "sk-own")
    with LLMServer() as server:
        ask(server)
        ask(server, key="OWN_KEY")
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer sk-own"]
    assert "not-for-this-server" not in json.dumps(server.headers)


def test_a_key_that_is_not_set_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OWN_KEY", raising=False)
    with LLMServer() as server, pytest.raises(Unreachable, match="OWN_KEY, named by key, is not set"):
        ask(server, key="OWN_KEY")


@pytest.mark.parametrize(
    "no",
    [
        refusal(404, "The model `m-7b` does not exist", code="model_not_found"),
        Reply(status=400, body=json.dumps({"detail": "Server is pinned to 'x'; requested 'm-7b'."})),
        Reply(status=404, body="not found", headers={"Content-Type": "text/plain"}),
    ],
)
def test_a_missing_model_is_told_in_the_servers_words(no: Reply):
    with LLMServer([no]) as server, pytest.raises(Unreachable, match="does not answer for model 'm-7b'") as told:
        ask(server, model="m-7b")
    assert "base_url" in str(told.value) and len(server.requests) == 1


def test_a_quota_that_is_gone_is_not_tried_again():
    with (
        LLMServer([refusal(429, "You exceeded your quota", code="insufficient_quota")]) as server,
        pytest.raises(Unreachable, match="no quota left"),
    ):
        ask(server)
    assert len(server.requests) == 1


def test_a_question_that_is_refused_is_not_tried_again():
    with (
        LLMServer([refusal(400, "maximum context length is 4096 tokens")]) as server,
        pytest.raises(Unanswered, match="context length"),
    ):
        ask(server)
    assert len(server.requests) == 1


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with LLMServer() as server, pytest.raises(MissingExtra, match=r"moodal\[llm\]"):
        ask(server)


# ---- budget


def test_every_request_counts_and_none_goes_beyond_the_budget():
    budget = Budget(most_requests=3)
    with (
        LLMServer([refusal(500, "boom")] * 9) as server,
        pytest.raises(BudgetSpent, match="budget of 3 requests is spent"),
    ):
        ask(server, budget=budget)
    assert len(server.requests) == 3 == budget.requests


def test_tokens_are_those_of_the_server_and_guessed_where_it_counts_none():
    budget = Budget(most_tokens=5000)
    with LLMServer([Reply(usage=(1000, 50)), Reply(text="word " * 40, usage=None)]) as server:
        ask(server, budget=budget)
        assert budget.tokens == 1050
        answer = ask(server, budget=budget)
    assert not answer.counted and answer.answer_tokens == 51
    assert budget.tokens == 1050 + QUESTION.tokens() + 51


def test_a_question_that_may_not_fit_is_not_sent():
    with LLMServer() as server, pytest.raises(BudgetSpent, match="of the budget of 100 are left"):
        ask(server, budget=Budget(most_tokens=100), max_tokens=100)
    assert not server.requests


def test_a_held_pace_lets_nothing_through():
    async def turns() -> float:
        pace, started = Pace(), time.monotonic()
        pace.hold(0.2)
        await asyncio.gather(pace.turn(), pace.turn())
        return time.monotonic() - started

    assert asyncio.run(turns()) >= 0.19
