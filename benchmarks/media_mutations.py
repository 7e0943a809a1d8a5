"""Damaged media through extraction: no crash, no hang over the limit, nothing left behind, a sentence for each file.

    python benchmarks/media_mutations.py --count 1000      prints what became of the files, by what was done to them

The files come from tests/mutants.py: bytes flipped, cut, joined, renamed, something else. ``--seeds``: a folder of clips to
damage in place of the generated ones. ``--recogniser none`` leaves out the recogniser of words, which takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from mutants import write_mutants, write_seeds

from moodal.features.clip import ClipSettings
from moodal.features.extract import ExtractReport, extract_folder
from moodal.features.words import WordSettings

SENTENCE = re.compile(r"[^\n]{10,400}")
UNEXPECTED, ENDED, LIMIT = "could not be read (", "ended the process", "took longer than the limit"


def main() -> None:
    """Make the files, extract them, print JSON; exit code 1 where something was not as promised."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="mutations-") as home:
        folder, scratch = Path(home) / "clips", Path(home) / "tmp"
        seeds = sorted(options.seeds.iterdir()) if options.seeds else write_seeds(Path(home) / "seeds")
        done = write_mutants(folder, seeds, options.count, first=options.first)
        scratch.mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(scratch), str(scratch)
        handles, started = _handles(), time.monotonic()
        report = extract_folder(
            folder, folder / "labels.csv", Path(home) / "store", settings=ClipSettings(words=WordSettings(recogniser=options.recogniser)),
            workers=options.workers, limit=options.limit, progress=_told,
        )  # fmt: skip
        summary = summarise(report, done)
        summary |= {
            "seconds": round(time.monotonic() - started, 1),
            "left in the temporary folder": sorted(path.name for path in scratch.iterdir()),
            "left in the work folder": _left(report.work),
            "processes left": len(multiprocessing.active_children()),
            "open files more than before": _handles() - handles,
        }
    print(json.dumps(summary, indent=1))
    promised = ("left in the temporary folder", "left in the work folder", "processes left", "without a sentence")
    sys.exit(any(summary[name] for name in promised))


def summarise(report: ExtractReport, done: Mapping[str, str]) -> dict[str, Any]:
    """Files by what became of them, and the sentences that were none."""
    left_out = {fault.file: fault.sentence for fault in report.faults}
    masked = {fault.file for fault in report.masked}
    became: Counter[str] = Counter()
    by_change: dict[str, Counter[str]] = {}
    for file, change in done.items():
        sentence = left_out.get(file, "")
        kind = next((kind for kind in (UNEXPECTED, ENDED, LIMIT) if kind in sentence), "refused with a sentence")
        what = kind if sentence else "stored, a modality masked" if file in masked else "stored whole"
        became[what] += 1
        by_change.setdefault(change, Counter())[what] += 1
    told = [fault.sentence for fault in (*report.faults, *report.masked)]
    return {
        "files": len(done),
        "became": dict(became),
        "by change": {change: dict(counts) for change, counts in by_change.items()},
        "without a sentence": [sentence for sentence in told if not SENTENCE.fullmatch(sentence)],
        "unexpected": [s for s in left_out.values() if UNEXPECTED in s or ENDED in s or LIMIT in s],
        "sentences": sorted({re.sub(r"m\d{4}\.\w+|\d[\d.]*", "…", sentence) for sentence in told}),
    }


def _left(work: Path) -> list[str]:
    kept = (".npz", ".fault.json")
    return sorted(p.name for p in work.iterdir() if not p.name.endswith((*kept, "report.csv", "summary.json", "lock")))


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def _told(done: int, total: int) -> None:
    if done % max(1, total // 20) == 0:
        print(f"{done} of {total}", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first file, which decides how it is damaged"
    )
    parser.add_argument("--seeds", type=Path, help="folder of clips to damage")
    parser.add_argument("--recogniser", default="pocketsphinx")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
