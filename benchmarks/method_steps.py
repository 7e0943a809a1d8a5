"""Time one training step of every method: all its passes and optimisers, beside its published computation.

    python benchmarks/method_steps.py --threads 2
    python benchmarks/method_steps.py --methods mib mmim --json

Sizes are those of the field's MOSI files: 32 clips, 50 steps of text states (768), audio (5) and vision (20); for methods that
identify people, 64 pictures of eight of them through their full networks, made as small as those of synthetic_reid. "published" is
the method with ``reference=true`` on streams padded to 50 steps, where it has that switch (its dropout draws bits as ours
does); "full" is ours on the same steps, "ragged" ours on clips of 5 to 50 real steps, cut to the batch's longest. All three
take turns in one process, so that a busy machine slows them alike; times and ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from lightning_fabric import Fabric

from moodal.build import configure, load_data
from moodal.core.batch import Batch, Stream, Target
from moodal.core.method import Method, Progress
from moodal.core.settings import TrainConfig
from moodal.core.spec import MODALITIES, DataSpec, Regression, StreamSpec
from moodal.methods import METHODS
from moodal.train.update import Updater

WIDTHS = {"text": 768, "audio": 5, "vision": 20}
ROWS, STEPS = 32, 50
TASK = Regression(-3.0, 3.0)
#: Explanations are read like text; a method that has none ignores them.
ROLES = ("audio", "vision")


def main() -> None:
    """Measure and print a table, or JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    report = {name: measure(name, rounds=options.rounds) for name in options.methods or METHODS}
    if options.json:
        print(json.dumps(report))
        return
    print(
        f"{'method':12} {'parameters':>11} {'full ms':>9} {'ragged ms':>10} {'published ms':>13} {'published / full':>17}"
    )
    for name, row in report.items():
        ragged = f"{row['ragged']:.1f}" if "ragged" in row else "-"
        theirs = f"{row['published']:.1f}" if "published" in row else "-"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
        print(f"{name:12} {row['parameters']:>11,} {row['full']:>9.1f} {ragged:>10} {theirs:>13} {ratio:>17}")


def identifies(name: str) -> bool:
    """Whether the method tells who somebody is, and does not score clips."""
    return Regression not in METHODS[name].needs(METHODS[name].Config()).tasks


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step by form, and the median ratio of the published form to ours."""
    config = METHODS[name].Config()
    spec, full = people() if identifies(name) else (clip_spec(), batch(ragged=False))
    steps = {"full": stepper(name, config, spec, full)}
    if not identifies(name):
        steps["ragged"] = stepper(name, config, spec, batch(ragged=True))
    if "reference" in {field.name for field in fields(config)}:
        steps["published"] = stepper(name, replace(config, reference=True), spec, full)
    times: dict[str, list[float]] = {form: [] for form in steps}
    for turn in range(rounds + 2):
        for form, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:  # the first turns warm up
                times[form].append(1e3 * (time.perf_counter() - started))
    found: dict[str, Any] = {form: statistics.median(values) for form, values in times.items()}
    if "published" in times:
        found["ratio"] = statistics.median(p / f for p, f in zip(times["published"], times["full"]))
    return {"parameters": sum(p.numel() for p in build(name, config, spec).parameters()), **found}


def clip_spec() -> DataSpec:
    """MOSI's sizes, text given as states."""
    words = StreamSpec("features", WIDTHS["text"])
    streams = {m: StreamSpec("features", WIDTHS[m]) for m in MODALITIES}
    told: Mapping[Any, StreamSpec] = dict.fromkeys(ROLES, words)
    return DataSpec(streams=streams, task=TASK, explanations=told, size={"train": ROWS})


def people(count: int = 8, each: int = 4) -> tuple[DataSpec, Batch]:
    """Visible and infrared pictures of made-up people, ``each`` of either kind."""
    data = load_data(configure("synthetic_reid/vsd").config)
    split = data.splits["train"]
    person, infrared = split.target.value, split.columns["infrared"]
    rows = [
        torch.nonzero((person == who) & (infrared == kind)).flatten()[:each] for who in range(count) for kind in (0, 1)
    ]
    return data.spec, split.rows(torch.cat(rows))


def build(name: str, config: Any, spec: DataSpec) -> Method:
    """The method with its parameters drawn from a fixed seed."""
    torch.manual_seed(0)
    return METHODS[name](config, spec)


def stepper(name: str, config: Any, spec: DataSpec, given: Batch) -> Callable[[], None]:
    """A function that takes one step of every pass of the first stage over ``given``."""
    method = build(name, config, spec).train()
    stage = method.stages()[0]
    fabric, settings = Fabric(accelerator="cpu", devices=1), TrainConfig(rate=1e-4)
    passes = [(part.step, Updater(fabric, part.groups, settings, total=1_000_000)) for part in stage.passes]
    for _, updater in passes:
        updater.rows, updater.progress = len(given), Progress(stage.name, 0, 0, 1)

    def step() -> None:
        for taken, updater in passes:
            taken(given, updater)

    return step


def batch(*, ragged: bool) -> Batch:
    """Rows of ``STEPS`` real steps, or of 5 to ``STEPS``."""
    torch.manual_seed(1)
    streams, told = {}, {}
    for place, name in enumerate((*MODALITIES, *ROLES)):
        width = WIDTHS["text"] if place >= len(MODALITIES) else WIDTHS[name]
        lengths = torch.randint(5, STEPS + 1, (ROWS, 1)) if ragged else torch.full((ROWS, 1), STEPS)
        mask = torch.arange(int(lengths.max())) < lengths
        stream = Stream(torch.randn(*mask.shape, width) * mask[..., None], mask)
        (told if place >= len(MODALITIES) else streams)[name] = stream
    return Batch(
        ids=tuple(map(str, range(ROWS))),
        index=torch.arange(ROWS),
        streams=streams,
        explanations=told,
        target=Target(torch.rand(ROWS) * 6 - 3, torch.ones(ROWS, dtype=torch.bool)),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
