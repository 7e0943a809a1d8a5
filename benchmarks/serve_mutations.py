"""A thousand damaged clips through a server whose decoder is the real one: what it answers, and what is left behind.

    python benchmarks/serve_mutations.py CLIP [CLIP ...] --run RUN --count 1000 --json

Bytes are flipped, parts cut out, zeroed or moved, headers changed, files glued together. Every answer must be a score or
a sentence, within the limit, and at the end the server must still score a whole clip and leave no file.
"""

from __future__ import annotations

import argparse
import collections
import getpass
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import httpx
from serve_load import server

#: What torch leaves where temporary files go: an empty folder for compiled code.
NOT_OURS = (f"torchinductor_{getpass.getuser()}",)
LIMITS = {"request_seconds": 60.0, "clip_seconds": 30.0}


def main() -> None:
    """Measure and print; exit code 1 where something was no score and no sentence, or was left behind."""
    options = _options()
    clips = [Path(name).read_bytes() for name in options.clips]
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        os.environ["TMPDIR"] = folder
        with server(options.run, {**LIMITS, "workers": options.workers}) as address:
            found = send_all(f"http://{address}", clips, options.count, Path(folder))
        time.sleep(2.0)
        found["left_at_the_end"] = sorted(path.name for path in Path(folder).iterdir() if path.name not in NOT_OURS)
    print(json.dumps(found) if options.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    sys.exit(
        int(bool(found["faults"] or found["left_files"] or found["left_at_the_end"] or not found["still_answers"]))
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--run", default="pretrained")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def damaged(clips: list[bytes], seed: int) -> bytes:
    """One of ``clips``, damaged in one of seven ways."""
    draw = random.Random(seed)
    data, other = bytearray(draw.choice(clips)), draw.choice(clips)
    how = seed % 7
    place = draw.randrange(len(data))
    if how == 0:
        for _ in range(draw.choice((1, 10, 200))):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif how == 1:
        del data[place:]
    elif how == 2:
        data[place : place + draw.randrange(1, 5000)] = bytes(draw.randrange(1, 5000))
    elif how == 3:
        del data[: draw.randrange(1, 2000)]
    elif how == 4:
        for _ in range(30):
            data[draw.randrange(min(1000, len(data)))] ^= 1 << draw.randrange(8)
    elif how == 5:
        data[place:] = other[draw.randrange(len(other)) :]
    else:
        data[place : place + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
    return bytes(data)


def send_all(address: str, clips: list[bytes], count: int, folder: Path) -> dict[str, object]:
    """What came of ``count`` damaged clips, one after the other."""
    answers: collections.Counter[str] = collections.Counter()
    faults, left, longest = [], 0, 0.0
    with httpx.Client(base_url=address, timeout=300) as client:
        while not client.get("/health").json()["decoders"]["ready"]:
            time.sleep(0.5)
        for seed in range(count):
            started = time.monotonic()
            answer = client.post("/predict", files={"clip": ("clip", damaged(clips, seed))})
            longest = max(longest, time.monotonic() - started)
            answers[str(answer.status_code)] += 1
            sentence = answer.status_code == 200 or answer.json()["error"].endswith(".")
            if answer.status_code not in (200, 422, 503, 504) or not sentence:
                faults.append((seed, answer.status_code, answer.text[:200]))
            left += sum(path.is_file() and path.name != "lock" for path in folder.rglob("*"))
        whole = client.post("/predict", files={"clip": ("clip", clips[0])})
        lost = [
            line for line in client.get("/metrics").text.splitlines() if line.startswith("moodal_lost_decoders_total")
        ]
    return {
        "sent": count, "answers": dict(answers), "faults": faults, "left_files": left, "longest_s": round(longest, 1),
        "lost_decoders": lost, "still_answers": whole.status_code == 200,
    }  # fmt: skip


if __name__ == "__main__":
    main()
