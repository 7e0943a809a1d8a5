"""Many clients at once on loopback: features in, scores out; percentiles of the time and everything that was no score.

    python benchmarks/serve_load.py --run RUN --clients 32 --seconds 60 --json
    python benchmarks/serve_load.py --run RUN --queue 8        (so short a queue that some requests are turned away: 429)

The server is a process of its own. Before the load, 16 requests are sent one by one and then at once, and compared.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

SERVE = (
    "import json, sys\n"
    "from moodal.serving.run import run\n"
    "from moodal.serving.settings import ServeSettings\n"
    "settings = ServeSettings(**json.loads(sys.argv[2]))\n"
    "run(sys.argv[1], port=0, settings=settings, announce=lambda at: print(at, flush=True))\n"
)


def main() -> None:
    """Measure and print, as lines or as JSON."""
    options = _options()
    settings = {"queue": options.queue, "batch": options.batch}
    with server(options.run, settings) as address:
        bodies = requests(address, options.steps)
        apart = difference(address, bodies[:16])
        found = load(address, bodies, clients=options.clients, seconds=options.seconds)
    found |= {"clients": options.clients, "steps": options.steps, "queue": options.queue, "batch": options.batch}
    found["single_against_batched"] = apart
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="pretrained")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=50, help="of each stream")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextlib.contextmanager
def server(run: str, settings: dict[str, Any]) -> Iterator[str]:
    """The address of a server of ``run``, which ends with the block."""
    command = [sys.executable, "-c", SERVE, run, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not address:
                sys.exit("The server did not start.")
            yield address.removeprefix("http://")
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer of one request."""
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def requests(address: str, steps: int) -> list[bytes]:
    """Sixty-four bodies of features of the widths that the server names."""
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("GET", "/health")
    widths = {m: told["width"] for m, told in json.loads(connection.getresponse().read())["features"].items()}
    draw = np.random.default_rng(0)

    def features() -> dict[str, Any]:
        return {m: draw.normal(size=(steps, width)).round(4).tolist() for m, width in widths.items()}

    return [json.dumps({"features": features()}).encode() for _ in range(64)]


def difference(address: str, bodies: list[bytes]) -> float:
    """The largest difference between the numbers of answers given alone and at the same time."""
    single = [_numbers(http.client.HTTPConnection(address, timeout=120), body) for body in bodies]
    together: list[np.ndarray] = [np.zeros(0)] * len(bodies)

    def one(place: int) -> None:
        together[place] = _numbers(http.client.HTTPConnection(address, timeout=120), bodies[place])

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(max(np.abs(a - b).max() for a, b in zip(single, together, strict=True)))


def _numbers(connection: http.client.HTTPConnection, body: bytes) -> np.ndarray:
    status, answer = ask(connection, body)
    while status == 429:
        time.sleep(0.1)
        status, answer = ask(connection, body)
    assert status == 200, answer
    first = [answer["value"]] if answer["value"] is not None else list(answer["probabilities"].values())
    return np.array([*first, *answer["change"].values()])


def load(address: str, bodies: list[bytes], *, clients: int, seconds: float) -> dict[str, Any]:
    """Every client sends one request after the other; one that is turned away waits a tenth of a second."""
    times: list[float] = []
    counts: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        place = number
        while time.monotonic() < until:
            place, started = place + 1, time.monotonic()
            try:
                status, _ = ask(connection, bodies[place % len(bodies)])
            except (OSError, http.client.HTTPException, ValueError) as fault:
                counts[type(fault).__name__] += 1
                connection = http.client.HTTPConnection(address, timeout=120)
                continue
            counts[str(status)] += 1
            if status == 200:
                times.append(time.monotonic() - started)
            else:
                time.sleep(0.1)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = np.percentile(np.array(times) * 1000, (50, 95, 99)) if times else np.full(3, np.nan)
    return {
        "answers": dict(counts), "scores_per_second": round(len(times) / seconds, 1),
        **{f"p{name}_ms": round(float(value), 1) for name, value in zip((50, 95, 99), shares, strict=True)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
