"""Cost against length: forward and backward of MulT and EMT-DLFR on streams of 50 to 800 steps per modality.

    python benchmarks/length_cost.py --out FOLDER       writes length_cost.csv, .png and .md there and prints the table

Two clips, the widths of MOSEI (300, 74, 35), every method at its own paper's sizes, training mode, one view of the batch.
"mult, published" is MulT with its attention written out (``published`` in ``mult_step.py``). Each point is a process of its
own with one thread. Time: processor seconds of the fastest of several steps, which a busy machine changes least. Memory:
growth of the highest resident size from before the first step to after the second, with an allocator that gives every
larger block back at once (glibc's ``MALLOC_MMAP_THRESHOLD_``), so that it is what the step needs.
Exponents are slopes of least squares in the logarithms, over all lengths and over the upper three.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mult_step import published, resident
from torch import Tensor

from moodal.bench.style import COLOURS, new_figure, png, styled
from moodal.core.batch import Batch, Stream
from moodal.core.files import aside, write_text
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.methods import METHODS

WIDTHS = {"text": 300, "audio": 74, "vision": 35}
LENGTHS = (50, 100, 200, 400, 800)
#: line of the table -> method and how its prediction is computed.
FORMS: dict[str, tuple[str, Callable[[Any, Batch], Tensor]]] = {
    "mult": ("mult", lambda method, batch: method(batch).prediction),
    "mult, published": ("mult", published),
    "emt_dlfr": ("emt_dlfr", lambda method, batch: method(batch).prediction),
}
#: what is measured -> its name in the table.
QUANTITIES = {"seconds": "time", "mib": "memory"}
#: how many of the longest have an exponent of their own.
UPPER = 3


class Row(NamedTuple):
    """One point: seconds of a step and MiB that it takes."""

    form: str
    steps: int
    seconds: float
    mib: float


def main() -> None:
    """Measure every method at every length and write what was found."""
    options = _options()
    if options.point is not None:
        print(json.dumps(MEASURES[options.quantity](options.point, options.steps, options)))
        return
    rows = []
    for steps in options.lengths:
        for form in FORMS:
            rows.append(child(form, steps, options))
            print(rows[-1], file=sys.stderr)
    table = as_table(rows)
    print(table)
    if options.out is not None:
        write_text(options.out / "length_cost.csv", as_csv(rows))
        write_text(options.out / "length_cost.md", table)
        with aside(options.out / "length_cost.png") as temporary:
            temporary.write_bytes(picture(rows))


def child(form: str, steps: int, options: argparse.Namespace) -> Row:
    """Every quantity at one point, each in a fresh process."""
    found = {}
    for quantity in QUANTITIES:
        settings = {"--point": form, "--quantity": quantity, "--steps": steps}
        settings |= {"--rows": options.rows, "--rounds": options.rounds}
        command = [sys.executable, __file__, *(str(part) for pair in settings.items() for part in pair)]
        environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if quantity == "mib" else {})
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[quantity] = json.loads(done.stdout)
    return Row(form, steps, **found)


def seconds(form: str, steps: int, options: argparse.Namespace) -> float:
    """Processor seconds of the fastest of several steps, after one to warm up."""
    step, times = stepper(form, steps, options.rows), []
    for _ in range(options.rounds + 1):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return min(times[1:])


def mib(form: str, steps: int, options: argparse.Namespace) -> float:
    """MiB that two steps need beside method and batch."""
    step, before = stepper(form, steps, options.rows), resident()
    step(), step()
    return resident() - before


def stepper(form: str, steps: int, rows: int) -> Callable[[], None]:
    """Forward and backward of one form."""
    torch.set_num_threads(1)
    name, predict = FORMS[form]
    method, batch = build(name), make_batch(rows, steps)

    def step() -> None:
        method.zero_grad(set_to_none=True)
        predict(method, batch).abs().mean().backward()

    return step


#: what is measured, and how.
MEASURES = {"seconds": seconds, "mib": mib}


def build(name: str) -> Any:
    """The method with its defaults, weights from seed 0, in training mode."""
    torch.manual_seed(0)
    streams = {m: StreamSpec("features", width) for m, width in WIDTHS.items()}
    spec = DataSpec(streams=streams, task=Regression(-3.0, 3.0), size={"train": 2})
    return METHODS[name](METHODS[name].Config(), spec).train()


def make_batch(rows: int, steps: int) -> Batch:
    """Random streams of that many steps, nothing padded."""
    torch.manual_seed(1)
    streams = {m: Stream(torch.randn(rows, steps, w), torch.ones(rows, steps).bool()) for m, w in WIDTHS.items()}
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams)


def slope(lengths: list[int], values: list[float]) -> float:
    """The exponent b of values ~ lengths^b, by least squares in the logarithms."""
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def columns(rows: list[Row], form: str, quantity: str) -> tuple[list[int], list[float]]:
    """Lengths and values of one line."""
    own = [row for row in rows if row.form == form]
    return [row.steps for row in own], [row._asdict()[quantity] for row in own]


def as_csv(rows: list[Row]) -> str:
    """One line per point."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows((row.form, row.steps, f"{row.seconds:.5g}", f"{row.mib:.1f}") for row in rows)
    return stream.getvalue()


def as_table(rows: list[Row]) -> str:
    """A Markdown table: one line per method and quantity, its exponents at the end."""
    lengths = sorted({row.steps for row in rows})
    head = ["", *(f"T = {steps}" for steps in lengths), "exponent", f"T >= {lengths[-min(UPPER, len(lengths))]}"]
    lines = [head, ["---"] * len(head)]
    for quantity, name in QUANTITIES.items():
        for form in FORMS:
            steps, values = columns(rows, form, quantity)
            shown = [f"{value:.3g} s" if quantity == "seconds" else f"{value:.0f} MiB" for value in values]
            exponents = [f"{slope(steps, values):.2f}", f"{slope(steps[-UPPER:], values[-UPPER:]):.2f}"]
            lines.append([f"{form}: {name}", *shown, *exponents])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@styled
def picture(rows: list[Row]) -> bytes:
    """Time and memory against length, both axes logarithmic."""
    figure = new_figure(8.0, 3.4)
    for axes, (quantity, name) in zip(figure.subplots(1, 2), QUANTITIES.items()):
        for form, colour in zip(FORMS, COLOURS):
            steps, values = columns(rows, form, quantity)
            label = f"{form}: T^{slope(steps[-UPPER:], values[-UPPER:]):.1f}"
            axes.loglog(steps, values, marker="o", markersize=4, color=colour, label=label)
        lengths = sorted({row.steps for row in rows})
        axes.set_xticks(lengths, [str(steps) for steps in lengths])
        axes.minorticks_off()
        axes.set_xlabel("steps of each modality")
        axes.set_title(f"{name} of a step, {'seconds' if quantity == 'seconds' else 'MiB'}")
        axes.legend(loc="upper left")
    return png(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for length_cost.csv, .png and .md")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--point", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--quantity", choices=QUANTITIES, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
