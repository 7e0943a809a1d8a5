"""What /predict takes and answers, by a client in this process."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from media_files import write_clip
from serving_toys import HOSTILE_TEXT, RECIPES, ToyPredictor, client, features, wait_for_decoder

FORM = "multipart/form-data; boundary=xyz"


@pytest.fixture(scope="module")
def served():
    with client(json_bytes=200_000, upload_bytes=100_000, characters=300, steps=50) as found:
        wait_for_decoder(found)
        yield found


def ask(served, **body):
    return served.post("/predict", json=body)


def test_a_text_is_scored(served):
    answer = ask(served, text="  what a day  ", id="mine")
    assert answer.status_code == 200
    body = answer.json()
    assert body["text"] == "what a day" and body["id"] == "mine" and body["text_source"] == "given"
    assert set(body["absent"]) == {"audio", "vision"} and set(body["without"]) == {"text"}
    assert "timeline" not in body and body["explanations"]["comment"] == HOSTILE_TEXT


def test_features_are_scored_and_evidence_can_be_left_out(served):
    body = ask(served, features=features(), evidence=False).json()
    assert body["change"] == {} and list(body["absent"]) == ["text"]
    with_evidence = ask(served, features=features(), text="so").json()
    assert set(with_evidence["change"]) == {"text", "audio", "vision"} and with_evidence["absent"] == {}


def test_a_clip_is_scored_with_its_time_line(served, tmp_path):
    path = tmp_path / "small.mp4"
    write_clip(path, 0.5)
    sent = {"clip": ("../../../etc/passwd\x00.mp4", path.read_bytes())}
    answer = served.post("/predict", files=sent, data={"text": "hello you", "start": "1", "end": "3"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["text"] == "hello you" and body["timeline"]["seconds"] == 2.0
    assert [word[0] for word in body["timeline"]["words"]] == ["hello", "you"]
    names = {signal["name"]: signal for signal in body["timeline"]["signals"]}
    assert {"pitch", "loudness", "head_pitch"} <= set(names) and None in names["pitch"]["values"]
    assert body["notes"] == ["read from the clip"]  # and not from where it lay


@pytest.mark.parametrize(
    "body, said",
    [
        ({}, "neither a text nor features"),
        ({"text": ""}, "neither a text nor features"),
        ({"text": 5}, "text is a number, and a string"),
        ({"texts": "x"}, "did you mean 'text'"),
        ({"text": "x" * 301}, "301 characters, and at most 300"),
        ({"text": "x", "evidence": "yes"}, "evidence is a string"),
        ({"text": "x", "id": 7}, "id is not a string"),
        ({"features": []}, "features is a list"),
        ({"features": {"smell": []}}, "no features called 'smell'; it reads audio (3 columns), vision (6 columns)"),
        ({"features": {"audio": [1, 2, 3]}}, "not a list of lists"),
        ({"features": {"audio": []}}, "0 steps; 1 to 50"),
        ({"features": {"audio": [[1, 2, 3]] * 51}}, "51 steps; 1 to 50"),
        ({"features": {"audio": [[1, 2, 3], [1, 2]]}}, "2 numbers in step 1, and a list of steps with 3 numbers"),
        ({"features": {"audio": [[1, 2, "3"]]}}, "something else than numbers"),
        ({"features": {"audio": [[1, 2, True]]}}, "something else than numbers"),
        ({"features": {"audio": [[1, 2, None]]}}, "something else than numbers"),
        ({"features": {"audio": [[1, 2, 1e39]]}}, "not finite"),
        ({"features": {"audio": [[1, 2, 10**400]]}}, "not finite"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(served, body, said):
    answer = ask(served, **body)
    assert answer.status_code == 422 and answer.json()["kind"] == "unusable"
    assert said in answer.json()["error"] and answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff\xfe", b"[" * 100_000, b'{"text": "a" "b"}', b"1" * 5000, b""],
    ids=["cut", "bytes", "deep", "colon", "digits", "empty"],
)
def test_damaged_json_is_400(served, body):
    answer = served.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["kind"] == "malformed"


@pytest.mark.parametrize(("body", "status"), [(b"[1]", 422), (b'{"text": "\\ud800"}', 422), (b"NaN", 422)])
def test_json_that_is_no_request(served, body, status):
    assert served.post("/predict", content=body, headers={"Content-Type": "application/json"}).status_code == status


def test_not_finite_features_by_name(served):
    body = json.dumps({"features": {"audio": [[0.0, float("nan"), 1.0]]}})
    answer = served.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and "not finite" in answer.json()["error"]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"data": {"start": "-1"}}, "start is '-1', and seconds from 0 up"),
        ({"data": {"start": "nan"}}, "start is 'nan'"),
        ({"data": {"start": "2", "end": "1"}}, "end must come after the start"),
        ({"data": {"evidence": "maybe"}}, "evidence is 'maybe'"),
        ({"data": {"txt": "x"}}, "no field 'txt'; did you mean 'text'"),
        ({"data": {"text": "x" * 301}}, "301 characters"),
        ({"files": {"clip": ("a", b"")}}, "empty"),
        ({"files": {"video": ("a", b"abc")}}, "no field 'video'"),
        ({"files": [("clip", ("a", b"abc")), ("clip", ("b", b"abc"))]}, "clip twice"),
    ],
)
def test_forms_that_cannot_be_used(served, form, said):
    answer = served.post("/predict", **{"files": {"clip": ("a.mp4", b"abc")}, **form})
    assert answer.status_code == 422 and said in answer.json()["error"], answer.text


def body_of(*parts: bytes, end: bytes = b"--xyz--\r\n") -> bytes:
    head = b'--xyz\r\nContent-Disposition: form-data; name="'
    return b"".join(head + part + b"\r\n" for part in parts) + end


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (body_of(b'clip"; filename="a"\r\n\r\nabc', end=b""), FORM, 422),
        (body_of(b'text"\r\n\r\nabc'), FORM, 422),
        (body_of(b'text"\r\n\r\n\xff'), FORM, 422),
        (body_of(b'text"\r\n\r\n\xff', b'clip"; filename="a"\r\n\r\nabc'), FORM, 422),
        (b"nothing of the kind", FORM, 400),
        (b"--xyz\r\nbroken\x00header\r\n\r\nabc\r\n--xyz--\r\n", FORM, 400),
        (b"", FORM, 422),
        (b"abc", "multipart/form-data", 400),
        (b"abc", "multipart/form-data; boundary=" + "x" * 200, 400),
        (b"text=abc", "application/x-www-form-urlencoded", 415),
        (b"abc", "", 415),
    ],
)
def test_damaged_and_other_bodies(served, content, kind, status):
    answer = served.post("/predict", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json()["error"].endswith(".")


def test_too_large_bodies_are_413_before_and_while_they_arrive(served):
    def pieces(start: bytes, piece: bytes, count: int):
        yield start
        for _ in range(count):
            yield piece

    start = b'--xyz\r\nContent-Disposition: form-data; name="clip"\r\n\r\n'
    streamed = served.post("/predict", content=pieces(start, b"x" * 50_000, 4), headers={"Content-Type": FORM})
    announced = served.post("/predict", files={"clip": ("a", b"x" * 400_000)})
    text = served.post("/predict", files={"clip": ("a", b"x")}, data={"text": "x" * 2000})
    long_json = served.post("/predict", json={"text": "x" * 200_001})
    slow_json = served.post(
        "/predict", content=pieces(b'{"text": "', b"x" * 100_000, 3), headers={"Content-Type": "application/json"}
    )
    for answer in (streamed, announced, text, long_json, slow_json):
        assert answer.status_code == 413 and answer.json()["kind"] == "too_large"


def test_every_answer_has_the_headers_that_browsers_need(served):
    answers = [served.get(path) for path in ("/", "/app.js", "/health", "/metrics", "/docs", "/nope")]
    for answer in (*answers, served.post("/predict", content=b"x"), served.put("/predict")):
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert [answer.status_code for answer in answers] == [200] * 5 + [404]


def test_pages_of_other_sites_are_turned_away(served):
    answer = served.post("/predict", json={"text": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403 and "nosniff" in answer.headers.values()
    assert served.post("/predict", json={"text": "x"}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_pages_load_nothing_from_elsewhere(served):
    for path in ("/", "/app.js", "/timeline.js", "/style.css", "/docs"):
        text = served.get(path).text.replace("http://localhost:8000", "").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, path
        assert "innerHTML" not in text and "eval(" not in text


def test_health_says_what_is_served_and_no_place_of_this_machine(served):
    health = served.get("/health").json()
    assert health["status"] == "ok" and health["run"]["method"] == "toy" and health["decoders"]["ready"] == 1
    assert health["features"]["vision"] == {"name": "toy_face", "width": 6}
    assert health["limits"]["upload_bytes"] == 100_000
    assert "private" not in json.dumps(health)


def test_metrics_count_by_path_input_and_status(served):
    def value(name: str) -> float:
        lines = [line for line in served.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(lines[0].split()[-1]) if lines else 0.0

    counted = 'moodal_requests_total{input="text",path="/predict",status="200"}'
    before = value(counted)
    ask(served, text="once more")
    assert value(counted) == before + 1
    served.get("/" + "x" * 50)
    assert value('moodal_requests_total{input="none",path="other",status="404"}') >= 1
    assert value("moodal_ready_decoders") == 1.0 and value("moodal_waiting") == 0.0


def test_the_interface_is_described(served):
    schema = served.get("/openapi.json").json()
    operation = schema["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "413", "422", "429", "504"} <= set(operation["responses"])
    page = served.get("/docs").text
    assert "POST /predict" in page and "Retry-After" in page and "curl -F clip=@clip.mp4" in page


def test_one_bad_request_does_not_spoil_its_batch():
    gate = threading.Event()
    with client(ToyPredictor(gate=gate), batch_wait=0.2) as found, ThreadPoolExecutor(4) as threads:
        texts = ("fine", "poison", "bug", "good")
        waiting = [threads.submit(found.post, "/predict", json={"text": text}) for text in texts]
        gate.set()
        answers = dict(zip(texts, (future.result(30) for future in waiting)))
    assert [answers[text].status_code for text in texts] == [200, 422, 500, 200]
    assert answers["poison"].json()["error"] == "The text is poison; send another."
    assert "in its log" in answers["bug"].json()["error"] and "a bug" not in answers["bug"].text


def test_requests_at_the_same_time_share_a_batch_and_get_their_own_answers():
    predictor = ToyPredictor(slow=0.05)
    with client(predictor, batch_wait=0.1, batch=8) as found, ThreadPoolExecutor(8) as threads:
        asked = [{"features": features(3 + n % 4, seed=n)} for n in range(24)]
        single = [found.post("/predict", json=body).json()["value"] for body in asked]
        together = [
            answer.json()["value"] for answer in threads.map(lambda body: found.post("/predict", json=body), asked)
        ]
    assert np.allclose(single, together, atol=1e-5) and len(set(single)) == 24
    assert max(predictor.batches) > 1 and max(predictor.batches) <= 8


def test_widths_of_the_toys_are_those_of_their_channels():
    assert all(len(recipe.channels) == recipe.width for recipe in RECIPES.values())
