"""A real server on a real port: signals, what is in flight, and what is left when it is gone."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_toys import ToyPredictor

from moodal.core.errors import MoodalError
from moodal.serving.run import serve


def post(server, **given) -> httpx.Response:
    return httpx.post(f"{server.address}/predict", timeout=60, **given)


def below(folder) -> list[str]:
    return [path.name for path in folder.rglob("*")]


@pytest.fixture(scope="module")
def server(start):
    """One for the tests up to that which stops it."""
    running = start(slow=0.3, upload_seconds=3.0)
    running.wait_until_ready()
    return running


def test_a_client_that_leaves_during_its_upload_leaves_nothing(server):
    host, port = server.address.removeprefix("http://").split(":")
    before = sorted(below(server.folder))
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=xyz\r\n"
        part = b'--xyz\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\n' + b"x" * 3_000_000
        connection.sendall(head.encode() + b"Content-Length: 9000000\r\n\r\n" + part)
        _until(lambda: httpx.get(f"{server.address}/health").json()["uploads"] == 1)
    _until(lambda: httpx.get(f"{server.address}/health").json()["uploads"] == 0)
    assert sorted(below(server.folder)) == before
    assert post(server, json={"text": "still here"}).status_code == 200


def test_a_slow_upload_is_given_up(server):
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=xyz\r\n"
        connection.sendall(head.encode() + b"Content-Length: 9000000\r\n\r\n--xyz\r\n")
        connection.settimeout(30)
        assert b"408" in connection.recv(4096).splitlines()[0]


def test_a_server_stops_when_told_and_finishes_what_is_in_flight(server):
    assert below(server.folder) != []
    with ThreadPoolExecutor(2) as threads:
        clip = threads.submit(post, server, files={"clip": ("a.mp4", b"SLOW x")})
        text = threads.submit(post, server, json={"text": "hello"})
        until = time.monotonic() + 30
        while httpx.get(f"{server.address}/health").json()["uploads"] == 0 and not clip.done():
            assert time.monotonic() < until
        code = server.stop()
        answers = [clip.result(), text.result()]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert code == 0 and server.process.stdout.read() == "stopped\n"
    assert below(server.folder) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)


def test_a_killed_server_takes_its_decoders_with_it(start):
    server = start()
    server.wait_until_ready()
    children = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and _parent(int(pid)) == server.process.pid
    ]  # fmt: skip
    assert children
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until = time.monotonic() + 30
    while any(_parent(pid) is not None for pid in children):
        assert time.monotonic() < until, "a decoder lives on"
        time.sleep(0.05)


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _until(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_address_in_use_is_told_in_a_sentence():
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(MoodalError, match=f"127.0.0.1:{port} cannot be served on"):
            serve(ToyPredictor(), port=port)
    with pytest.raises(MoodalError, match="port is 70000"):
        serve(ToyPredictor(), port=70000)
    with pytest.raises(MoodalError, match="cannot be served on"):
        serve(ToyPredictor(), host="no.such.host.invalid")
