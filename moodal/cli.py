"""The command line: parses, calls, prints. Whatever it does, three lines of Python can do too."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import moodal
from moodal.core.errors import Interrupted, MoodalError

#: A fault of the user's input; interrupted by the user.
FAULT, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a fault of the input, 130 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _options(parser(), arguments)
    from moodal.console import quiet_libraries

    quiet_libraries()
    try:
        return int(options.run(options) or 0)
    except MoodalError as fault:
        print("\n".join(f"error: {line}" for line in str(fault).splitlines()), file=sys.stderr)
        return FAULT
    except Interrupted as stop:
        if str(stop):  # one process speaks for all
            print(f"stopped and saved. Go on with: {stop}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped. What was saved before is intact.", file=sys.stderr)
        return INTERRUPTED


def _options(commands: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, letting settings stand after options too, which argparse alone does not."""
    options, rest = commands.parse_known_args(arguments)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text or "settings" not in options]
    if unknown:
        commands.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.settings = [*options.settings, *rest]
    return options


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="moodal", description=moodal.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"moodal {moodal.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[Any], Any], about: str, example: str) -> argparse.ArgumentParser:
        part = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.set_defaults(run=run)
        return part

    def settings(part: argparse.ArgumentParser) -> None:
        part.add_argument(
            "settings",
            nargs="*",
            metavar="key=value",
            help="settings, for example train.epochs=5 (see: moodal show RECIPE)",
        )

    part = command(
        "demo", _demo, "Train, evaluate and report TEXT on a synthetic corpus: the five-minute tour.", "moodal demo"
    )
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    part = command(
        "train",
        _train,
        "Train a recipe, over one seed or several.",
        "moodal train cmu_mosi/text seed=1,2,3 data.root=DATA/cmu_mosi",
    )
    part.add_argument("recipe", nargs="?", help="<corpus>/<method>; see: moodal list recipes")
    settings(part)
    part.add_argument("--resume", metavar="RUN", help="go on with an unfinished run folder")
    part.add_argument("--config", metavar="FILE", help="a YAML file of settings in place of the recipe's own")
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    _json(part)
    part = command(
        "evaluate",
        _evaluate,
        "Score a finished run again, on its own or other data of its recipe.",
        "moodal evaluate runs/cmu_mosi/text/0a1b2c3d/seed-1",
    )
    part.add_argument("folder", metavar="RUN")
    settings(part)
    part.add_argument(
        "--split", action="append", choices=("train", "valid", "test"), help="split to score (default: valid and test)"
    )
    part.add_argument("--out", metavar="FILE", help="also write the predictions as CSV")
    _json(part)
    part = command(
        "report",
        _report,
        "Write one HTML page for one run or several.",
        "moodal report runs/cmu_mosi/text --out report.html",
    )
    part.add_argument("folders", nargs="+", metavar="RUN")
    part.add_argument("--out", metavar="FILE", help="where to (default: report.html in the first folder)")
    part = command(
        "ablate",
        _ablate,
        "Train every row of the paper's ablation table and print it with ours.",
        "moodal ablate cmu_mosi/text seed=1,2,3 data.root=DATA/cmu_mosi",
    )
    part.add_argument("recipe")
    settings(part)
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    part.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    _json(part)
    part = command(
        "import",
        _import,
        "Import an MMSA-format pickle into a store, safely.",
        "moodal import unaligned_50.pkl --corpus mosi --out stores/mosi",
    )
    part.add_argument("file", metavar="FILE")
    part.add_argument("--corpus", required=True, help="mosi, mosei, sims or sims_v2")
    part.add_argument("--out", metavar="STORE", help="folder to make (default: stores/<corpus>)")
    part.add_argument("--overwrite", action="store_true", help="replace an existing store")
    _json(part)
    part = command(
        "import-checkpoint", _import_checkpoint, "Make a run folder from a checkpoint of a method's official code.",
        "moodal import-checkpoint text mosi_best.pth --out runs/official",
    )  # fmt: skip
    part.add_argument("method", help="the method, for example text")
    part.add_argument("file", metavar="FILE")
    part.add_argument("--out", required=True, metavar="RUN")
    settings(part)
    part = command(
        "parity",
        _parity,
        "Check this build against numbers made by authors' code.",
        "moodal parity parity/text/*.safetensors",
    )
    part.add_argument("files", nargs="+", metavar="FILE.safetensors")
    _json(part)
    part = command(
        "bench", _bench, "Run a speed benchmark of the checkout's benchmarks folder.", "moodal bench text_step --json"
    )
    part.add_argument("name", nargs="?", help="file name without .py (default: list them)")
    part.add_argument("rest", nargs=argparse.REMAINDER, help="options of the benchmark")
    part = command("list", _list, "List methods, corpora or recipes.", "moodal list methods")
    part.add_argument("what", choices=("methods", "corpora", "recipes"))
    part = command(
        "show",
        _show,
        "Show all settings of a recipe and where each comes from.",
        "moodal show cmu_mosi/text model.width=64",
    )
    part.add_argument("recipe")
    settings(part)
    command("check", _check, "Check every recipe: settings, groups and stages.", "moodal check")
    return top


def _json(part: argparse.ArgumentParser) -> None:
    part.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _print_json(value: Any) -> None:
    from moodal.core.files import plain

    print(json.dumps(plain(value), ensure_ascii=False))


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


def _train(options: argparse.Namespace) -> int:
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
        _print_json(result.summary())
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from moodal.jobs import evaluate_run

    splits = tuple(options.split or ("valid", "test"))
    out = None if options.out is None else Path(options.out)
    scores = evaluate_run(Path(options.folder), _overrides(options.settings), splits=splits, out=out)
    for split, row in scores.items():
        print(f"{split:6}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    if options.json:
        _print_json(scores)
    return 0


def _report(options: argparse.Namespace) -> int:
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


def _ablate(options: argparse.Namespace) -> int:
    from moodal.jobs import ablate

    overrides = _overrides(options.settings)
    found = ablate(options.recipe, overrides, seeds=_seeds(overrides), runs=Path(options.runs))
    if found is None:
        return 0
    finished, table = found
    print({"markdown": table.markdown, "csv": table.csv, "latex": table.latex}[options.format]())
    if options.json:
        _print_json(finished.as_json())
    return 1 if finished.failed else 0


def _import(options: argparse.Namespace) -> int:
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
        _print_json(report.to_json())
    return 0


def _import_checkpoint(options: argparse.Namespace) -> int:
    from moodal.jobs import import_checkpoint

    folder = import_checkpoint(options.method, Path(options.file), Path(options.out), _overrides(options.settings))
    print(f"wrote {folder}; score it with: moodal evaluate {folder} data.root=STORE")
    return 0


def _parity(options: argparse.Namespace) -> int:
    from moodal.interop.parity import check_files

    results = check_files([Path(name) for name in options.files])
    for case in results:
        worst, verdict = case.worst, "ok" if case.ok else "DIFFERS"
        allowed = f"allowed {worst.tolerance:.0e}" if worst.tolerance else "must be equal"
        print(
            f"{case.method:8} {case.case:24} largest difference {worst.difference:.1e} ({worst.name}; {allowed})  {verdict}"
        )
    if options.json:
        _print_json(
            {"ok": all(case.ok for case in results), "cases": {f"{c.method}/{c.case}": c.to_json() for c in results}}
        )
    return 0 if all(case.ok for case in results) else 1


def _bench(options: argparse.Namespace) -> int:
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


def _list(options: argparse.Namespace) -> int:
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


def _show(options: argparse.Namespace) -> int:
    from moodal.build import configure
    from moodal.core.config import flatten, to_plain

    found = configure(options.recipe, _overrides(options.settings))
    values: Mapping[str, Any] = flatten(to_plain(found.config), {})
    width = max(len(key) for key in values)
    for key, value in values.items():
        print(f"{key:{width}}  {json.dumps(value):28}  {found.origins.get(key, 'default')}")
    return 0


def _check(_: argparse.Namespace) -> int:
    from moodal.jobs import check_recipes

    faults = check_recipes()
    for recipe, fault in faults.items():
        print(f"{recipe:28} {'ok' if fault is None else fault}")
    return 0 if all(fault is None for fault in faults.values()) else FAULT


def _demo(options: argparse.Namespace) -> int:
    from moodal.jobs import demo

    print(demo(Path(options.runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
