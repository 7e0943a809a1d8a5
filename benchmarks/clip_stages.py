"""Seconds that each stage takes for a second of clip, models loaded: with words recognised, and with words given.

    python benchmarks/clip_stages.py CLIP ... --texts clips.csv --json

The words given are the column ``text`` of a CSV file, by ``id``, the clip's name without its ending.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moodal.predictor import Predictor


def main() -> None:
    """Measure and print."""
    options = _options()
    predictor = Predictor.open(options.run, watch=True)
    predictor.clip(options.clips[0])  # loads the models
    texts = {} if options.texts is None else _texts(options.texts)
    report = {"recognised": measure(predictor, options.clips, {})}
    if texts:
        report["given"] = measure(predictor, [clip for clip in options.clips if clip.stem in texts], texts)
    if options.json:
        print(json.dumps(report))
        return
    for name, row in report.items():
        stages = ", ".join(f"{stage} {share:.3f}" for stage, share in row["stages"].items())
        print(f"words {name}: {row['all']:.2f} of the clips' length ({stages})")
        print(f"  a clip: {row['median']:.2f} of its length in the median, {row['slowest']:.2f} at most")


def measure(predictor: Predictor, clips: Sequence[Path], texts: Mapping[str, str]) -> dict[str, Any]:
    """Shares of the clips' length by stage, and of wall time for a clip."""
    spent: dict[str, float] = {}
    length, shares = 0.0, []
    for clip in clips:
        started = time.perf_counter()
        found = predictor.clip(clip, text=texts.get(clip.stem))
        shares.append((time.perf_counter() - started) / found.seconds)
        length += found.seconds
        for stage, seconds in found.spent.items():
            spent[stage] = spent.get(stage, 0.0) + seconds
    stages = {stage: seconds / length for stage, seconds in spent.items()}
    return {
        "stages": stages, "all": sum(stages.values()), "median": statistics.median(shares), "slowest": max(shares)
    }  # fmt: skip


def _texts(table: Path) -> dict[str, str]:
    with table.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["text"] for row in csv.DictReader(file) if row["text"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--run", default="pretrained")
    parser.add_argument("--texts", type=Path, metavar="CSV")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
