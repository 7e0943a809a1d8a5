"""Explanations of a whole store: two stages, faults kept and retried, resumed after a kill, joined into the corpus."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from llm_server import GOOD, LLMServer, Reply, refusal, small_store, words_of, write_clip

from moodal.core.errors import DataError, MoodalError
from moodal.core.spec import Regression
from moodal.data.corpus import Clip, CorpusFacts, RawCorpus
from moodal.data.store import open_store, read_manifest, verify_store
from moodal.derive import explain_corpus
from moodal.explain.llm.generate import explain_clip, explain_clips, explain_store
from moodal.explain.llm.join import join_explanations, join_store, read_answers
from moodal.explain.llm.material import ClipMaterial, MediaFolder
from moodal.explain.llm.question import Unreachable
from moodal.explain.llm.records import UNANSWERED, AnswerFile
from moodal.explain.llm.settings import AskSettings, ExplainSettings, LLMSettings
from moodal.features.clip import ExtractedClip


def settings(
    server: LLMServer, *, refine: bool = False, model: str = "m", frames: int = 3, **ask: Any
) -> ExplainSettings:
    def made(name: str) -> LLMSettings:
        return LLMSettings(model=name, base_url=server.url, backoff=0.01, timeout=10.0, retries=1, frames=frames)

    return ExplainSettings(describe=made(model), refine=made("thinker" if refine else ""), ask=AskSettings(**ask))


def about(body: dict[str, Any]) -> Reply:
    """Valid answers that repeat the transcript, so that mixed-up clips would be seen."""
    role = "checked" if body["model"] == "thinker" else "seen"
    return Reply(text=json.dumps({**GOOD, "comment": f"{role}: {words_of(body)}"}))


def answering(n: int, body: dict[str, Any]) -> Reply:
    return about(body)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return small_store(tmp_path / "store")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for n in range(6):
        write_clip(tmp_path / "media" / "video" / f"{n}.mp4", seconds=1.5)
    return tmp_path / "media"


def test_both_stages_of_every_clip_end_in_the_corpus(store: Path, media: Path, tmp_path: Path):
    out, seen = tmp_path / "answers.jsonl", []
    with LLMServer(answering) as server:
        report = explain_store(
            store, settings=settings(server, refine=True), media=media, out=out, progress=lambda *n: seen.append(n)
        )
        first = next(n for n, body in enumerate(server.requests) if body["model"] == "m")
        pictures, asked = server.pictures(first), server.said(first)
        checked = server.said(next(n for n, body in enumerate(server.requests) if body["model"] == "thinker"))
    assert (report.clips, report.done, report.asked, report.left, report.stopped) == (6, 6, 12, 0, "")
    assert report.requests == 12 and report.tokens == 12 * 120 and seen[-1] == (6, 6)
    assert len(pictures) == 3 and pictures[0].startswith("data:image/jpeg;base64,/9j/")
    assert "You see 3 pictures" in asked and "Picture at 0.2 s:" in asked and '"number ' in asked
    assert '"comment": "seen: number' in checked and "Picture" not in checked

    joined = join_store(store, out)
    assert joined.by == "llm:m+thinker:describe-1+refine-1" and joined.texts == {"audio": 0, "vision": 6, "comment": 6}
    verify_store(store)
    for n, clip in enumerate(open_store(store).clips):
        assert clip.explanations["comment"] == f"checked: number {n} speaks" and clip.notes["reason"] == "clues"
        assert set(clip.explained_by.values()) == {joined.by}
    assert read_manifest(store)["source"]["explanations"]["by"] == joined.by


def test_what_was_asked_is_recorded_with_the_answer(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OWN_KEY", "sk-very-secret")
    out = tmp_path / "answers.jsonl"
    with LLMServer(answering) as server:
        one = LLMSettings(model="m", base_url=server.url, key="OWN_KEY")
        explain_store(store, settings=ExplainSettings(describe=one), media=None, out=out, splits=("test",))
        port = server.url.rpartition(":")[2]
    plans, records = read_answers(out)
    (plan,) = plans.values()
    assert plan.prompt == "describe-1" and len(plan.prompt_sha256) == 64 and plan.settings["language"] == "English"
    assert [record.clip for record in sorted(records, key=lambda r: r.clip)] == ["video/2", "video/5"]
    for record in records:
        assert record.plan == plan.name and json.loads(record.answer) == {**GOOD, "comment": record.parsed["comment"]}
        assert record.tokens == (100, 20) and record.tries == 1 and len(record.question) == 64
    assert "sk-very-secret" not in out.read_text() and port not in out.read_text()


def test_nothing_is_said_of_what_was_not_shown(store: Path, tmp_path: Path):
    """The model told of a voice and a smile; it got neither sound nor picture."""
    with LLMServer(answering) as server:
        explain_store(store, settings=settings(server), media=None, out=tmp_path / "a.jsonl")
    raw, joined = join_explanations(open_store(store), tmp_path / "a.jsonl")
    assert joined.texts == {"audio": 0, "vision": 0, "comment": 6}
    assert all(set(clip.explanations) == {"comment"} for clip in raw.clips)


def test_an_unusable_answer_is_kept_and_asked_again(store: Path, tmp_path: Path):
    def behaviour(n: int, body: dict[str, Any]) -> Reply:
        said = json.dumps(body["messages"])
        if "number 0" in said:
            return Reply(text="I would rather not.")
        if "number 1" in said and len(body["messages"]) == 2:
            return Reply(text='{"reason": "x", "audio": "y', finish="length")
        return about(body)

    out = tmp_path / "a.jsonl"
    with LLMServer(behaviour) as server:
        report = explain_store(store, settings=settings(server, attempts=3, concurrency=1), media=None, out=out)
        again = next(body for body in server.requests if len(body["messages"]) == 4 and "number 1" in json.dumps(body))
        assert (
            report.done == 5 and report.failed == {"video/0": "there is no JSON object in it"} and report.unusable == 4
        )
        assert (
            again["max_tokens"] == 2048
            and "cannot be used: it was cut off after 20 tokens" in again["messages"][3]["content"]
        )
        count = len(server.requests)
        resumed = explain_store(store, settings=settings(server, attempts=3), media=None, out=out)
        assert len(server.requests) == count and resumed.kept == 5 and list(resumed.failed) == ["video/0"]
        server.behaviour = answering
        more = explain_store(store, settings=settings(server, attempts=3, again=True), media=None, out=out)
        assert more.done == 6 and len(server.requests) == count + 1
    kept = [record for record in read_answers(out)[1] if record.clip == "video/0" and record.parsed is None]
    assert [record.attempt for record in kept] == [1, 2, 3] and {record.answer for record in kept} == {
        "I would rather not."
    }
    joined = join_explanations(open_store(store), out)[1]
    assert joined.unusable["there is no JSON object in it"] == 3 and not joined.without


def test_a_changed_transcript_is_asked_about_again(store: Path, tmp_path: Path):
    out, clip = tmp_path / "a.jsonl", ClipMaterial(id="video/0", text="number 0 sighs")
    with LLMServer(answering) as server:
        explain_store(store, settings=settings(server), media=None, out=out)
        explain_clips([clip], settings=settings(server), out=out)
        assert len(server.requests) == 7
    raw = open_store(store)
    assert join_explanations(raw, out)[0].clips[0].explanations["comment"] == "seen: number 0 speaks"
    changed = RawCorpus(facts=raw.facts, clips=(Clip(id="video/1", split="train", text="other words", label=0.0),))
    joined = join_explanations(changed, out)[1]
    assert joined.stale == ("video/1",) and joined.unknown == ("video/0", "video/2", "video/3", "video/4", "video/5")


def test_a_killed_run_loses_only_what_was_in_flight(commands, tmp_path: Path):
    store, out = small_store(tmp_path / "store", 30), tmp_path / "a.jsonl"

    def slowly(n: int, body: dict[str, Any]) -> Reply:
        return Reply(text=about(body).text, wait=0.05)

    with LLMServer(slowly) as server:
        running = commands.start_call("llm_run:explain", str(store), str(out), server.url)
        until = time.monotonic() + 120
        while len(server.requests) < 12:
            assert running.poll() is None and time.monotonic() < until, running.error()
            time.sleep(0.01)
        running.signal(signal.SIGKILL)
        running.wait()
        time.sleep(0.2)  # what the server was doing
        sent = len(server.requests)
        whole = [line for line in out.read_bytes().split(b"\n")[:-1]]
        kept = {json.loads(line)["clip"] for line in whole if json.loads(line)["kind"] != "plan"}
        assert sent - 4 <= len(kept) <= sent < 30
        with out.open("ab") as file:
            file.write(b'{"plan": "half a li')  # killed in the middle of a line
        report = explain_store(store, settings=settings(server), media=None, out=out)
        asked = {words_of(body) for body in server.requests[sent:]}
    assert report.done == 30 and report.kept == len(kept) and len(asked) == 30 - len(kept) == report.asked
    assert not {f"number {clip.rpartition('/')[2]} speaks" for clip in kept} & asked
    assert join_explanations(open_store(store), out)[1].texts["comment"] == 30


def test_clips_are_asked_about_several_at_once_but_no_more(store: Path, tmp_path: Path):
    with LLMServer(lambda n, body: Reply(text=about(body).text, wait=0.2)) as server:
        explain_store(store, settings=settings(server, concurrency=3), media=None, out=tmp_path / "a.jsonl")
    assert server.most_at_once == 3


def test_a_spent_budget_stops_and_a_new_one_goes_on(store: Path, tmp_path: Path):
    out = tmp_path / "a.jsonl"
    with LLMServer(answering) as server:
        report = explain_store(store, settings=settings(server, most_requests=4), media=None, out=out)
        assert (report.done, report.left, len(server.requests)) == (
            4,
            2,
            4,
        ) and "budget of 4 requests" in report.stopped
        assert report.stopped in report.lines()
        report = explain_store(store, settings=settings(server, most_requests=4), media=None, out=out)
        assert (report.done, report.kept, report.asked, report.stopped) == (6, 4, 2, "")
        report = explain_store(store, settings=settings(server, model="other", most_tokens=10), media=None, out=out)
        assert report.done == 0 and "of the budget of 10 are left" in report.stopped


def test_a_server_that_goes_away_stops_the_run_and_nothing_counts_as_an_attempt(store: Path, tmp_path: Path):
    out = tmp_path / "a.jsonl"
    with LLMServer(lambda n, body: about(body) if n < 2 else refusal(503, "gone")) as server:
        report = explain_store(store, settings=settings(server, attempts=1, concurrency=1), media=None, out=out)
        assert report.done == 2 and "3 clips in a row without an answer" in report.stopped and report.left == 1
        faults = [record for record in read_answers(out)[1] if record.kind == UNANSWERED]
        assert len(faults) == 3 and "HTTP 503 (gone)" in faults[0].fault
        server.behaviour = answering
        assert explain_store(store, settings=settings(server, attempts=1), media=None, out=out).done == 6


def test_a_server_that_turns_the_key_down_stops_the_run(store: Path, tmp_path: Path):
    with LLMServer(lambda n, body: refusal(401, "no")) as server:
        report = explain_store(store, settings=settings(server), media=None, out=tmp_path / "a.jsonl")
    assert report.done == 0 and "refused a request without a key" in report.stopped


def test_a_wrong_address_is_one_sentence(store: Path, tmp_path: Path):
    with LLMServer() as server:
        wanted = settings(server)
    with pytest.raises(Unreachable, match="No server answers at"):
        explain_store(store, settings=wanted, media=None, out=tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


# ---- media


def test_clips_without_a_readable_file_are_told_and_explained_by_their_words(store: Path, media: Path, tmp_path: Path):
    (media / "video" / "1.mp4").unlink()
    (media / "video" / "2.mp4").write_bytes(b"no video at all" * 100)
    write_clip(media / "video" / "3.mp4", seconds=1.0, pictures=False)
    (media / "video" / "4.txt").write_text("number 4")
    with LLMServer(answering) as server:
        report = explain_store(store, settings=settings(server), media=media, out=tmp_path / "a.jsonl")
        shown = {words_of(body): len(server.pictures(n)) for n, body in enumerate(server.requests)}
    assert report.done == 6 and report.without_media == ["video/1"] and list(report.notes) == ["video/2"]
    assert [shown[f"number {n} speaks"] for n in range(6)] == [3, 0, 0, 0, 3, 3]
    records = {record.clip: record for record in read_answers(tmp_path / "a.jsonl")[1]}
    assert records["video/0"].shown == {"pictures": 3, "video": False, "sound": False}
    assert records["video/0"].parsed["vision"] and not records["video/3"].parsed["vision"]
    assert any("1 clips have no file" in line for line in report.lines())


def test_a_folder_of_other_clips_is_refused(store: Path, tmp_path: Path):
    write_clip(tmp_path / "other" / "x.mp4", seconds=0.5)
    with LLMServer() as server:
        with pytest.raises(DataError, match="holds no file of any of the 6 clips, such as video/0"):
            explain_store(store, settings=settings(server), media=tmp_path / "other", out=tmp_path / "a.jsonl")
        with pytest.raises(DataError, match="is not a folder"):
            explain_store(store, settings=settings(server), media=tmp_path / "none", out=tmp_path / "a.jsonl")
        with pytest.raises(DataError, match="no clips in holdout"):
            explain_store(store, settings=settings(server), media=None, out=tmp_path / "a.jsonl", splits=("holdout",))
        assert not server.requests


def test_files_are_found_by_note_and_by_id(tmp_path: Path):
    for name in ("a/1.mp4", "a/1.srt", "b.wav", "b.mp4", "own.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = MediaFolder(tmp_path)

    def found(name: str, **notes: str) -> str | None:
        path = folder.find(Clip(id=name, split="train", text="", label=None, notes=notes))
        return None if path is None else path.relative_to(tmp_path).as_posix()

    assert found("a$_$1") == found("a/1") == "a/1.mp4" and found("b") == "b.mp4"
    assert found("x", file="own.mkv") == "own.mkv" and found("y") is None


def test_a_part_of_a_file_is_shown_as_that_part(tmp_path: Path):
    """Pictures brighten over 4 s; those of the last second are all brighter than those of the first."""
    import base64
    import io

    from PIL import Image

    clip = write_clip(tmp_path / "long.mp4", seconds=4.0)
    levels = {}
    with LLMServer(answering) as server:
        for start, end in ((0.0, 1.0), (3.0, 4.0)):
            part = ClipMaterial(id=f"{start}", text=f"from {start}", media=clip, start=start, end=end)
            explain_clips([part], settings=settings(server), out=tmp_path / "a.jsonl")
            pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in server.pictures()]
            levels[start] = [sum(picture.convert("L").getdata()) / (96 * 64) for picture in pictures]
            assert "a clip of 1.0 seconds" in server.said() and "Picture at 0.2 s" in server.said()
    assert len(levels[0.0]) == 3 and levels[0.0] == sorted(levels[0.0])
    assert max(levels[0.0]) + 50 < min(levels[3.0])


def test_the_clip_and_its_sound_go_where_they_are_taken(tmp_path: Path):
    clip = write_clip(tmp_path / "c.mp4", seconds=1.0)
    with LLMServer(answering) as server:
        whole = LLMSettings(model="m", base_url=server.url, frames=0, video=True, sound=True)
        explain_clips(
            [ClipMaterial(id="c", media=clip)], settings=ExplainSettings(describe=whole), out=tmp_path / "a.jsonl"
        )
        parts = {part["type"]: part for part in server.requests[0]["messages"][1]["content"]}
        part = ClipMaterial(id="p", media=clip, start=0.5)
        report = explain_clips([part], settings=ExplainSettings(describe=whole), out=tmp_path / "a.jsonl")
    assert parts["video_url"]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert parts["input_audio"]["input_audio"]["format"] == "wav" and "You hear its sound." in parts["text"]["text"]
    assert "more than the clip" in report.notes["p"]
    records = {record.clip: record for record in read_answers(tmp_path / "a.jsonl")[1]}
    assert records["c"].shown == {"pictures": 0, "video": True, "sound": True} and records["c"].parsed["audio"]


# ---- one clip


def test_one_clip_is_explained_without_a_file_of_answers(tmp_path: Path):
    clip = write_clip(tmp_path / "c.mp4", seconds=1.5)
    done = ExtractedClip(id="c", path=str(clip), seconds=1.5, text="hello there")
    with LLMServer(answering) as server:
        texts = explain_clip(done, settings(server, refine=True), measured={"audio": "high pitch"})
        assert texts == {"audio": "a calm voice", "vision": "a slight smile", "comment": "checked: hello there"}
        assert "Measured from the sound: high pitch" in server.said(0) and len(server.pictures(0)) == 3
        assert asyncio.run(_inside_a_loop(done, settings(server)))["comment"] == "seen: hello there"
        server.behaviour = lambda n, body: Reply(text="no")
        with pytest.raises(MoodalError, match="c could not be explained: there is no JSON object"):
            explain_clip(done, settings(server))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.mp4"]


async def _inside_a_loop(clip: ExtractedClip, wanted: ExplainSettings) -> dict[str, str]:
    """As a server's own handler would call it."""
    return explain_clip(clip, wanted)


def test_a_file_is_explained_by_its_pictures_its_words_and_its_voice(tmp_path: Path):
    clip = write_clip(tmp_path / "c.mp4", seconds=1.5)
    with LLMServer(answering) as server:
        texts = explain_clip(clip, settings(server), text="what a day")
        asked = server.said(0)
    assert texts["comment"] == "seen: what a day" and texts["audio"] == "a calm voice"
    assert "median pitch 15" in asked and "Hz" in asked and "You do not hear its sound" in asked


# ---- joining


def test_several_configurations_in_one_file_must_be_named(store: Path, tmp_path: Path):
    out = tmp_path / "a.jsonl"
    with LLMServer(answering) as server:
        explain_store(store, settings=settings(server), media=None, out=out)
        explain_store(store, settings=settings(server, model="other"), media=None, out=out)
    raw = open_store(store)
    with pytest.raises(
        DataError, match=r"several configurations: \w+ \(llm:m:describe-1\), \w+ \(llm:other:describe-1\)"
    ):
        join_explanations(raw, out)
    name = next(name for name, plan in read_answers(out)[0].items() if plan.model == "other")
    assert join_explanations(raw, out, plan=name)[1].by == "llm:other:describe-1"
    with pytest.raises(DataError, match="has no plan 'x'"):
        join_explanations(raw, out, plan="x")


def test_texts_that_clips_bring_stay_if_asked(tmp_path: Path):
    facts = CorpusFacts(
        name="own", title="", language="en", task=Regression(-1, 1), protocol="mosi", source="", licence=""
    )
    brought = Clip(
        id="c", split="train", text="so", label=0.0, explanations={"comment": "ours"}, explained_by={"comment": "file"}
    )
    raw, out = RawCorpus(facts=facts, clips=(brought,)), tmp_path / "a.jsonl"
    with LLMServer(answering) as server:
        explain_clips([ClipMaterial(id="c", text="so", measured={"audio": "loud"})], settings=settings(server), out=out)
    kept, replaced = join_explanations(raw, out, keep=True)[0].clips[0], join_explanations(raw, out)[0].clips[0]
    assert kept.explanations == {"comment": "ours", "audio": "a calm voice"}
    assert kept.explained_by == {"comment": "file", "audio": "llm:m:describe-1"}
    assert replaced.explanations["comment"] == "seen: so"


def test_measuring_fills_what_a_model_left_open(store: Path, tmp_path: Path):
    out = tmp_path / "a.jsonl"
    with LLMServer(lambda n, body: Reply(text="no") if "number 3" in json.dumps(body) else about(body)) as server:
        explain_store(store, settings=settings(server, attempts=1), media=None, out=out)
    raw, joined = join_explanations(open_store(store), out)
    assert list(joined.without) == ["video/3"] and "1 clips got none" in "\n".join(joined.lines())
    by = [clip.explained_by.get("comment", "") for clip in explain_corpus(raw).clips]
    assert [name.startswith("llm:") for name in by] == [True, True, True, False, True, True]
    assert not by[3].startswith("llm:")


def test_a_damaged_file_of_answers_is_told(store: Path, tmp_path: Path):
    out = tmp_path / "a.jsonl"
    out.write_text('{"kind": "", "what": 1}\n')
    with pytest.raises(DataError, match="line 1 is no answer"):
        join_explanations(open_store(store), out)
    with pytest.raises(DataError, match="does not exist"):
        join_explanations(open_store(store), tmp_path / "none.jsonl")
    out.write_text("")
    with pytest.raises(DataError, match="holds no explanations"):
        join_explanations(open_store(store), out)


def test_two_runs_do_not_write_one_file(tmp_path: Path):
    with (
        AnswerFile(tmp_path / "a.jsonl"),
        pytest.raises(MoodalError, match="being written by another run"),
        AnswerFile(tmp_path / "a.jsonl"),
    ):
        pass
