"""Extract clips, kill the process in the middle, go on: what is done twice, and whether the store is the same to the byte.

    python benchmarks/extract_kill.py --count 200          prints JSON

The clips are spans of those in ``--seeds`` (a folder), else generated ones. All stages of the default extractors run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from media_files import voice, write_clip

from moodal.features.extract import extract_folder
from moodal.features.media import probe

SPLITS = ("train", "valid", "test")


def main() -> None:
    """Three extractions of the same clips, each a process of its own: whole, killed, resumed."""
    options = _options()
    if options.extract:
        folder, out = options.extract
        report = extract_folder(folder, folder / "labels.csv", out, workers=options.workers)
        print(json.dumps({"lines": report.lines(), "spent": dict(report.spent), "media": report.media}))
        return
    with tempfile.TemporaryDirectory(prefix="extract-kill-") as home:
        folder = write_clips(Path(home) / "clips", options.seeds, options.count)
        print(json.dumps(measure(folder, Path(home), options), indent=1))


def measure(folder: Path, home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times, what the resumed run wrote anew, and checksums of both stores."""
    started = time.monotonic()
    whole = json.loads(_start(folder, home / "whole", options).communicate()[0])
    seconds, out, work = time.monotonic() - started, home / "store", home / "store.work"
    killed = _start(folder, out, options)
    while len(list(work.glob("*.npz"))) < options.count // 2:
        if killed.poll() is not None:
            raise SystemExit("the extraction ended before it was to be killed")
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(1)  # its processes end with it
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    started = time.monotonic()
    resumed = json.loads(_start(folder, out, options).communicate()[0])
    after = {path.name: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    return {
        "clips": options.count, "processes": options.workers, "uninterrupted seconds": round(seconds, 1),
        "done when killed": len(before),
        "of these written again": sum(after[name] != written for name, written in before.items()),
        "written by the resumed run": len(after) - len(before),
        "resumed seconds": round(time.monotonic() - started, 1),
        "same bytes": checksums(out) == checksums(home / "whole"), "files compared": len(checksums(out)),
        "media seconds": round(whole["media"], 1),
        "seconds by stage": {stage: round(spent, 1) for stage, spent in whole["spent"].items()},
        "whole": whole["lines"], "resumed": resumed["lines"],
    }  # fmt: skip


def checksums(store: Path) -> dict[str, str]:
    """File -> SHA-256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(store.iterdir())}


def write_clips(folder: Path, seeds: Path | None, count: int) -> Path:
    """``count`` rows: spans of half a second to a second of the seeds, or small clips of voices of their own."""
    folder.mkdir(parents=True)
    rows = ["file,id,label,split,start,end"]
    if seeds is None:
        for number in range(count):
            name, length = f"c{number:04}.mp4", 0.5 + 0.5 * (number % 11) / 10
            wave = voice(length, pitch=100 + number % 150)
            write_clip(folder / name, length, wave=wave, size=(160, 120), rate=10)
            rows.append(f"{name},c{number:04},{number % 7 - 3},{SPLITS[number % 3]},,")
    else:
        files = sorted(path for path in seeds.iterdir() if path.is_file())
        lengths = {path: probe(path).seconds for path in files}
        for path in files:
            (folder / path.name).write_bytes(path.read_bytes())
        for number in range(count):
            path = files[number % len(files)]
            start = (number // len(files)) * 0.1 % max(lengths[path] - 1.0, 0.1)
            end = start + 0.5 + 0.1 * (number % 6)
            rows.append(f"{path.name},c{number:04},{number % 7 - 3},{SPLITS[number % 3]},{start:.2f},{end:.2f}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def _start(folder: Path, out: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--extract", str(folder), str(out), "--workers", str(options.workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seeds", type=Path, help="folder of clips of which spans are taken")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--extract", type=Path, nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
