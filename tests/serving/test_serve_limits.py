"""Decoding apart from the server: crashes, time, memory, full queues, and nothing left on disk."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving_toys import ToyPredictor, client, make_nothing, read_toy, wait_for_decoder

from moodal.core.errors import DataError, MoodalError
from moodal.serving.batching import Batcher
from moodal.serving.folders import PREFIX, temporary_folder
from moodal.serving.metrics import Metrics
from moodal.serving.parcel import pack, unpack
from moodal.serving.refusal import Refusal
from moodal.serving.settings import GIB, ServeSettings

WIDTHS = {"audio": 3, "vision": 6}


@pytest.fixture(scope="module")
def served(place):
    with client(request_seconds=12.0, cpu_seconds=1, worker_memory=12 * GIB, uploads=2, recycle=1000) as found:
        wait_for_decoder(found)
        yield found
    assert list(place.iterdir()) == []


def send(served, content: bytes, **data):
    return served.post("/predict", files={"clip": ("clip.mp4", content)}, data=data)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("order", "status", "said"),
    [
        ("REFUSE", 422, "The clip is 999 s long, and at most 120 are read; cut it."),
        ("CRASH", 422, "The decoder stopped while it read the clip (signal SIGABRT)"),
        ("RAISE", 422, "The clip could not be read (RuntimeError: Inside of the clip)"),
        ("MEMORY", 422, "could not be read (MemoryError"),
        ("SPIN", 504, "more than 1 s of processor time"),
        ("SLEEP", 504, "took longer than"),
    ],
)
def test_a_hostile_file_ends_in_a_sentence_and_the_next_clip_is_read(served, place, order, status, said):
    wait_for_decoder(served)
    answer = send(served, order.encode() + b" rest")
    assert answer.status_code == status and said in answer.json()["error"], answer.text
    assert str(place) not in answer.text
    wait_for_decoder(served)
    assert send(served, b"fine").status_code == 200
    assert files_below(place) == ["lock"]


def test_lost_decoders_are_counted(served):
    text = served.get("/metrics").text
    assert 'moodal_lost_decoders_total{cause="crash"}' in text and 'moodal_lost_decoders_total{cause="time"}' in text


def test_what_a_decoder_writes_goes_away_with_the_clip(served, place):
    wait_for_decoder(served)
    assert send(served, b"WRITE x").status_code == 200
    assert files_below(place) == ["lock"]


def test_more_uploads_than_allowed_are_429(served):
    wait_for_decoder(served)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: send(served, b"SLOW x"), range(6)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429} and codes.count(200) >= 2
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "5" and "2 clips are being read" in refused.json()["error"]
    assert send(served, b"fine").status_code == 200


def test_a_decoder_is_replaced_after_enough_clips(place):
    with client(recycle=2) as found:
        for _ in range(2):
            wait_for_decoder(found)
            assert send(found, b"fine").status_code == 200
        wait_for_decoder(found)
        assert 'moodal_lost_decoders_total{cause="recycled"} 1.0' in found.get("/metrics").text
        assert send(found, b"fine").status_code == 200


def test_a_decoder_that_cannot_start_is_503_and_texts_are_served_all_the_same(place):
    with client(make=make_nothing, request_seconds=60) as found:
        answer = send(found, b"fine")
        assert answer.status_code == 503 and "The model is not on this machine." in answer.json()["error"]
        assert answer.headers["Retry-After"] == "5"
        assert found.post("/predict", json={"text": "hello"}).status_code == 200


def test_a_full_queue_is_429_with_a_time_to_try_again():
    gate = threading.Event()
    with client(ToyPredictor(gate=gate), queue=3, batch=1) as found, ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(found.post, "/predict", json={"text": f"text {n}"}) for n in range(12)]
        until = time.monotonic() + 20
        while sum(future.done() for future in waiting) < 8 and time.monotonic() < until:
            time.sleep(0.01)
        gate.set()
        codes = sorted(future.result(30).status_code for future in waiting)
        refused = next(future.result() for future in waiting if future.result().status_code == 429)
    assert codes == [200] * 4 + [429] * 8  # one in the model, three waiting
    assert 1 <= int(refused.headers["Retry-After"]) <= 60 and refused.json()["kind"] == "busy"


def test_an_answer_that_takes_too_long_is_504_and_the_model_goes_on():
    gate = threading.Event()
    with client(ToyPredictor(gate=gate), request_seconds=0.2) as found:
        late = found.post("/predict", json={"text": "late"})
        gate.set()
        assert late.status_code == 504 and late.json()["kind"] == "too_slow"
        assert found.post("/predict", json={"text": "next"}).status_code == 200


def test_what_is_in_the_queue_is_answered_before_the_server_stops():
    gate = threading.Event()
    batcher = Batcher(ToyPredictor(gate=gate), ServeSettings(batch=1), Metrics())  # type: ignore[arg-type]
    batcher.start()
    clip = read_toy(Path(__file__), id="x", text="good", start=0.0, end=None)
    answers = [batcher.submit(clip) for _ in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closing:
        time.sleep(0.01)
    with pytest.raises(Refusal, match="The server is stopping"):
        batcher.submit(clip)
    closing.join(0.1)
    assert closing.is_alive() and not any(answer.done() for answer in answers)
    gate.set()
    closing.join(30)
    assert not closing.is_alive() and [answer.result(0).value for answer in answers] == [answers[0].result(0).value] * 3


def test_a_stopping_server_closes_its_queue(monkeypatch: pytest.MonkeyPatch):
    closed: list[Batcher] = []
    close = Batcher.close
    monkeypatch.setattr(Batcher, "close", lambda queue: (close(queue), closed.append(queue)))
    with client(ToyPredictor()) as found:
        assert found.post("/predict", json={"text": "good"}).status_code == 200 and not closed
    assert len(closed) == 1


def test_batches_are_bounded_by_padded_steps():
    predictor = ToyPredictor()
    with client(predictor, batch=8, batch_steps=100, batch_wait=0.2) as found, ThreadPoolExecutor(6) as threads:
        bodies = [{"features": {"audio": [[0.0, 0.0, float(n)]] * 40}} for n in range(6)]
        answers = list(threads.map(lambda body: found.post("/predict", json=body), bodies))
    assert all(answer.status_code == 200 for answer in answers) and max(predictor.batches) <= 2


# ---- folders and parcels


def test_a_temporary_folder_goes_away_and_so_do_those_of_killed_servers(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, used, young, other = (tmp_path / f"{PREFIX}{name}" for name in ("left", "used", "young", "other"))
    for folder in (left, young, other):
        folder.mkdir()
        (folder / "lock").touch()
    (other / "lock").unlink()  # not one of ours
    with temporary_folder() as kept:
        used = kept
        for folder in (left, used, other):
            os.utime(folder, (0, 0))
        with temporary_folder() as folder:
            assert folder.exists() and used.exists() and young.exists() and other.exists() and not left.exists()
            assert (folder.stat().st_mode & 0o077) == 0
    assert not used.exists()


def test_a_parcel_keeps_the_clip_and_not_its_place():
    clip = read_toy(Path(__file__), id="x", text=None, start=0.0, end=None)
    back = unpack(pack(clip), widths=WIDTHS)
    assert back.words == clip.words and back.path == "" and back.notes == (f"read from {Path(__file__).name}",)
    for name in ("streams", "times"):
        assert all(np.array_equal(vars(clip)[name][m], vars(back)[name][m]) for m in WIDTHS)
    assert np.array_equal(back.confidence, clip.confidence)


def test_what_is_no_parcel_is_refused():
    good = pack(read_toy(Path(__file__), id="x", text=None, start=0.0, end=None))
    for data in (b"", b"abc", good[:-5], good[:100], b"\xff" * 64, good.replace(b"words", b"wards")):
        with pytest.raises(DataError, match="something else than a clip"):
            unpack(data, widths=WIDTHS)
    with pytest.raises(DataError, match=r"expected finite \(T, 4\)"):
        unpack(good, widths={**WIDTHS, "audio": 4})


def test_settings_that_cannot_be():
    for wrong in ({"queue": 0}, {"clip_seconds": 0.0}, {"batch_wait": 2.0}, {"workers": -1}):
        with pytest.raises(MoodalError, match=f"^{next(iter(wrong))} is "):
            ServeSettings(**wrong)
