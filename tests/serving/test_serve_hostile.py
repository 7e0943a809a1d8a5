"""Media files damaged in thirty ways, sent to a server whose decoder is the real one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from media_files import write_clip
from serving_toys import ToyPredictor, client, wait_for_decoder

from moodal.features.clip import ClipExtractor, ClipSettings
from moodal.features.words import WordSettings

SETTINGS = ClipSettings(audio="librosa_33", vision="none", words=WordSettings(recogniser="none", align=False))
KINDS = (".mp4", ".mkv", ".avi", ".wav", ".mp3")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    """One second in each kind of container."""
    folder, made = tmp_path_factory.mktemp("clips"), {}
    for kind in KINDS:
        write_clip(folder / f"clip{kind}", 1.0)
        made[kind] = (folder / f"clip{kind}").read_bytes()
    return made


@pytest.fixture(scope="module")
def served(place):
    predictor = ToyPredictor()
    predictor.extractor = ClipExtractor(SETTINGS)
    with client(
        predictor, make=None, clip_seconds=3.0
    ) as found:  # the server makes its reader from the predictor's extractor
        wait_for_decoder(found, 120)
        yield found
    assert list(place.iterdir()) == []


def damaged(content: bytes, seed: int) -> bytes:
    """``content`` flipped, cut, shifted or glued, by ``seed``."""
    draw = random.Random(seed)
    data = bytearray(content)
    how = seed % 5
    if how == 0:
        for _ in range(60):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif how == 1:
        del data[draw.randrange(8, len(data)) :]
    elif how == 2:
        start = draw.randrange(len(data) // 2)
        data[start : start + 200] = bytes(200)
    elif how == 3:
        data = data[draw.randrange(1, 200) :]
    else:
        for _ in range(20):  # where headers are
            data[draw.randrange(min(600, len(data)))] ^= 1 << draw.randrange(8)
    return bytes(data)


def send(served, content: bytes, name: str = "clip.mp4"):
    return served.post("/predict", files={"clip": (name, content)}, data={"text": "hello you"})


def left(place: Path) -> list[str]:
    return [path.name for path in place.rglob("*") if path.is_file() and path.name != "lock"]


def test_whole_clips_are_read(served, clips):
    for kind, content in clips.items():
        answer = send(served, content)
        assert answer.status_code == 200, (kind, answer.text)
        assert answer.json()["seconds"] == pytest.approx(1.0, abs=0.15) and "audio" not in answer.json()["absent"]


def test_thirty_damaged_files_are_read_or_refused_with_a_sentence(served, place, clips):
    codes = []
    for seed in range(30):
        answer = send(served, damaged(clips[KINDS[seed // 5 % len(KINDS)]], seed))
        codes.append(answer.status_code)
        assert answer.status_code in (200, 422), answer.text
        assert answer.status_code == 200 or (answer.json()["error"].endswith(".") and str(place) not in answer.text)
        assert left(place) == []
    assert {200, 422} == set(codes)
    assert send(served, clips[".mp4"]).status_code == 200


SECRET = b"root:x:0:0"
OTHERS = {
    "playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "description": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "manifest": b"<?xml version='1.0'?><MPD><Period><BaseURL>file:///etc/</BaseURL></Period></MPD>",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "archive": b"PK\x03\x04" + bytes(64),
    "zeros": bytes(5000),
    "noise": random.Random(0).randbytes(5000),
    "script": b"#!/bin/sh\necho owned\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_clip_is_refused_and_opens_nothing_else(served, place, name):
    answer = send(served, OTHERS[name])
    assert answer.status_code == 422 and answer.json()["error"].endswith("."), answer.text
    assert SECRET.decode() not in answer.text and left(place) == []


def test_a_clip_longer_than_allowed_is_refused(served, place, tmp_path):
    write_clip(tmp_path / "long.wav", 4.0)
    answer = send(served, (tmp_path / "long.wav").read_bytes())
    assert answer.status_code == 422 and "at most 3" in answer.json()["error"], answer.text
    content = {"clip": ("x", (tmp_path / "long.wav").read_bytes())}
    part = served.post("/predict", files=content, data={"start": "1", "end": "2", "text": "so"})
    assert part.status_code == 200 and part.json()["seconds"] == 1.0 and left(place) == []
