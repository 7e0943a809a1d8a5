"""One function per command: from parsed options to calls and printed lines. Returns the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import moodal
from moodal.core.errors import MoodalError


def print_json(value: Any) -> None:
    """Print ``value`` as one line of JSON, NaN as null."""
    from moodal.core.files import plain

    print(json.dumps(plain(value), ensure_ascii=False))


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line a split: every metric and its value."""
    for split, row in scores.items():
        print(f"{split:6}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))


def _overrides(settings: Sequence[str]) -> dict[str, Any]:
    from moodal.core.config import parse_override

    return dict(parse_override(text) for text in settings)


def _seeds(overrides: dict[str, Any]) -> list[int]:
    """Take ``seed`` out of the overrides: one number or several with commas, none if it is not there.

    Raises ``MoodalError`` if they are not numbers.
    """
    given = overrides.pop("seed", [])
    parts = given if isinstance(given, list) else str(given).replace("_", ",").split(",")
    try:
        seeds = [int(str(part)) for part in parts]
    except ValueError:
        raise MoodalError(
            f"seed is '{given}'; expected one whole number or several with commas, as in seed=1,2,3."
        ) from None
    return list(dict.fromkeys(seeds))


def train(options: argparse.Namespace) -> int:
    """Train a recipe over its seeds, or go on with a run."""
    from moodal.jobs import resume_run, train_seeds

    overrides = _overrides(options.settings)
    if options.resume is not None:
        if options.recipe is not None:
            overrides |= _overrides([options.recipe])
        result = resume_run(Path(options.resume), overrides)
    else:
        if options.recipe is None:
            raise MoodalError(
                "no recipe was given; expected <corpus>/<method>, for example: moodal train synthetic/text"
            )
        file = None if options.config is None else Path(options.config)
        result = train_seeds(options.recipe, overrides, seeds=_seeds(overrides), runs=Path(options.runs), file=file)
    if result is None:  # a process that only keeps company
        return 0
    print(result.table())
    if options.json:
        print_json(result.summary())
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Score a run again."""
    from moodal.jobs import evaluate_run

    splits = tuple(options.split or ("valid", "test"))
    out = None if options.out is None else Path(options.out)
    scores = evaluate_run(Path(options.folder), _overrides(options.settings), splits=splits, out=out)
    print_scores(scores)
    if options.json:
        print_json(scores)
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the page."""
    from moodal.bench.report import report_run
    from moodal.bench.runs import find_runs

    runs = [run for folder in options.folders for run in find_runs(Path(folder))]
    if not runs:
        raise MoodalError(
            f"no run folder was found below {', '.join(options.folders)}; expected folders with scores.json, written by moodal train."
        )
    out = Path(options.out) if options.out else Path(options.folders[0]) / "report.html"
    print(f"open {report_run(runs, out)}")
    return 0


def ablate(options: argparse.Namespace) -> int:
    """Make the paper's ablation table."""
    from moodal.jobs import ablate

    overrides = _overrides(options.settings)
    found = ablate(options.recipe, overrides, seeds=_seeds(overrides), runs=Path(options.runs))
    if found is None:
        return 0
    finished, table = found
    print({"markdown": table.markdown, "csv": table.csv, "latex": table.latex}[options.format]())
    if options.json:
        print_json(finished.as_json())
    return 1 if finished.failed else 0


def compare(options: argparse.Namespace) -> int:
    """Train several methods on one corpus and print one table."""
    from moodal.jobs import compare

    overrides = _overrides([text for text in options.methods if "=" in text] + options.settings)
    methods = [text for text in options.methods if "=" not in text]
    found = compare(options.corpus, methods, overrides, seeds=_seeds(overrides), runs=Path(options.runs))
    if found is None:
        return 0
    print({"markdown": found.table.markdown, "csv": found.table.csv, "latex": found.table.latex}[options.format]())
    for recipe, fault in found.failures.items():
        print(f"not trained: {recipe}: {fault}", file=sys.stderr)
    print(f"open {found.page}", file=sys.stderr)
    if options.json:
        print_json(found.as_json())
    return 1 if found.failures else 0


def robustness(options: argparse.Namespace) -> int:
    """Score runs while more and more is missing."""
    from moodal.robustness import robustness

    settings = [text for text in options.folders if "=" in text and not Path(text).exists()]
    folders = [Path(text) for text in options.folders if text not in settings]
    overrides = _overrides(settings + options.settings)
    found, files = robustness(folders, _plan(options), overrides, out=Path(options.out))
    print(found.areas().markdown())
    print("\n".join(f"wrote {path}" for path in files))
    if options.json:
        print_json(found.as_json() | {"files": [str(path) for path in files]})
    return 0


def _plan(options: argparse.Namespace) -> Any:
    """The rates, seeds and modalities asked for; None for those that the runs were trained with."""
    from moodal.bench.robustness import DECIBELS, RATES, Plan
    from moodal.data.degrade import PUBLISHED, snr_to_rate

    given = {name: vars(options)[name] for name in ("kind", "rates", "snr", "seeds", "modalities")}
    if options.matched:
        told = [f"--{name}" for name, value in given.items() if value is not None]
        if told:
            raise MoodalError(f"--matched takes what the runs were trained with; leave out {', '.join(told)}.")
        return None
    kind: Any = options.kind or "frames"
    if (options.snr is not None and kind != "noise") or (options.rates is not None and kind == "noise"):
        raise MoodalError("--snr is for --kind noise, and --rates for the other kinds.")
    rates = tuple(_listed(options.rates, "rates", float)) or RATES
    if kind == "noise":
        decibels = tuple(_listed(options.snr, "snr", float)) or DECIBELS
        rates = (0.0, *sorted(snr_to_rate(value) for value in decibels))
    return Plan(
        kind=kind,
        rates=rates,
        seeds=tuple(_listed(options.seeds, "seeds", int)) or (PUBLISHED,),
        modalities=tuple(_listed(options.modalities, "modalities", str)),
        split=options.split,
    )


def _listed(text: str | None, name: str, kind: type) -> list[Any]:
    """The values of an option, separated by commas; none if it was not given. Raises ``MoodalError`` for other kinds."""
    try:
        return [] if text is None else [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise MoodalError(f"--{name} is '{text}'; expected {wanted} with commas between them.") from None


def import_(options: argparse.Namespace) -> int:
    """Import a pickle into a store."""
    from moodal.console import WaitingBar
    from moodal.interop.mmsa import import_file

    out = Path(options.out or Path("stores") / options.corpus)
    with WaitingBar(f"import {Path(options.file).name}") as bar:
        report = import_file(
            Path(options.file), corpus=options.corpus, out=out, overwrite=options.overwrite,
            progress=lambda what, done, total: bar(done, total, what),
        )  # fmt: skip
    print(report)
    print(f"wrote {out}; train with: moodal train {options.corpus}/text data.root={out}")
    if options.json:
        print_json(report.to_json())
    return 0


def import_checkpoint(options: argparse.Namespace) -> int:
    """Make a run from an official checkpoint."""
    from moodal.jobs import import_checkpoint

    folder = import_checkpoint(options.method, Path(options.file), Path(options.out), _overrides(options.settings))
    print(f"wrote {folder}; score it with: moodal evaluate {folder} data.root=STORE")
    return 0


def parity(options: argparse.Namespace) -> int:
    """Compare with fixtures."""
    from moodal.interop.parity import check_files

    results = check_files([Path(name) for name in options.files])
    for case in results:
        worst, verdict = case.worst, "ok" if case.ok else "DIFFERS"
        allowed = f"allowed {worst.tolerance:.0e}" if worst.tolerance else "must be equal"
        print(
            f"{case.method:8} {case.case:24} largest difference {worst.difference:.1e} ({worst.name}; {allowed})  {verdict}"
        )
    if options.json:
        print_json(
            {"ok": all(case.ok for case in results), "cases": {f"{c.method}/{c.case}": c.to_json() for c in results}}
        )
    return 0 if all(case.ok for case in results) else 1


def bench(options: argparse.Namespace) -> int:
    """Run a benchmark of the checkout."""
    import runpy

    folder = Path(moodal.__file__).resolve().parent.parent / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if options.name is None or options.name not in names:
        known = (
            ", ".join(names) or "none: benchmarks come with a checkout of the project, not with the installed package"
        )
        if options.name is None:
            print(f"benchmarks: {known}")
            return 0
        raise MoodalError(f"There is no benchmark '{options.name}'; known: {known}")
    sys.argv = [f"moodal bench {options.name}", *options.rest]
    runpy.run_path(str(folder / f"{options.name}.py"), run_name="__main__")
    return 0


def list_(options: argparse.Namespace) -> int:
    """List what there is."""
    from moodal.build import recipes
    from moodal.data import CORPORA
    from moodal.methods import METHODS

    if options.what == "recipes":
        print("\n".join(recipes()))
        return 0
    if options.what == "methods":
        for name in METHODS:
            print(f"{name:16} {METHODS[name].status:10} {METHODS[name].title}")
        return 0
    for name in CORPORA:
        facts = CORPORA[name].facts
        print(f"{name:16} {facts.language:4} {type(facts.task).__name__:16} {facts.title}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Show the settings of a recipe."""
    from moodal.build import configure
    from moodal.core.config import flatten, to_plain

    found = configure(options.recipe, _overrides(options.settings))
    values: Mapping[str, Any] = flatten(to_plain(found.config), {})
    width = max(len(key) for key in values)
    for key, value in values.items():
        print(f"{key:{width}}  {json.dumps(value):28}  {found.origins.get(key, 'default')}")
    return 0


def check(_: argparse.Namespace) -> int:
    """Check every recipe."""
    from moodal.jobs import check_recipes

    faults = check_recipes()
    for recipe, fault in faults.items():
        print(f"{recipe:28} {'ok' if fault is None else fault}")
    return 0 if all(fault is None for fault in faults.values()) else 2
