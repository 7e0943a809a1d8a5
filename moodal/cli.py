"""The command line: parses, calls, prints. Whatever it does, three lines of Python can do too."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, get_args

import moodal
from moodal import clip_commands as clips
from moodal import commands as run
from moodal.core.errors import Interrupted, MoodalError
from moodal.core.settings import Kind

#: Where sub-commands are added.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
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
    _training_commands(commands)
    _scoring_commands(commands)
    _compare_command(commands)
    _robustness_command(commands)
    _clip_commands(commands)
    _extract_command(commands)
    _explaining_commands(commands)
    _importing_commands(commands)
    _looking_commands(commands)
    return top


def _command(
    commands: Commands, name: str, function: Callable[[Any], Any], about: str, example: str
) -> argparse.ArgumentParser:
    part = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    part.set_defaults(run=function)
    return part


def _settings(part: argparse.ArgumentParser) -> None:
    about = "settings, for example train.epochs=5 (see: moodal show RECIPE)"
    part.add_argument("settings", nargs="*", metavar="key=value", help=about)


def _training_commands(commands: Commands) -> None:
    part = _command(
        commands,
        "demo",
        clips.demo,
        "Train, evaluate and report TEXT on a synthetic corpus: the five-minute tour.",
        "moodal demo",
    )
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    part = _command(
        commands,
        "train",
        run.train,
        "Train a recipe, over one seed or several.",
        "moodal train cmu_mosi/text seed=1,2,3 data.root=DATA/cmu_mosi",
    )
    part.add_argument("recipe", nargs="?", help="<corpus>/<method>; see: moodal list recipes")
    _settings(part)
    part.add_argument("--resume", metavar="RUN", help="go on with an unfinished run folder")
    part.add_argument("--config", metavar="FILE", help="a YAML file of settings in place of the recipe's own")
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    _json(part)


def _scoring_commands(commands: Commands) -> None:
    part = _command(
        commands,
        "evaluate",
        run.evaluate,
        "Score a finished run again, on its own or other data of its recipe.",
        "moodal evaluate runs/cmu_mosi/text/0a1b2c3d/seed-1",
    )
    part.add_argument("folder", metavar="RUN")
    _settings(part)
    part.add_argument(
        "--split", action="append", choices=("train", "valid", "test"), help="split to score (default: valid and test)"
    )
    part.add_argument("--out", metavar="FILE", help="also write the predictions as CSV")
    _json(part)
    part = _command(
        commands,
        "report",
        run.report,
        "Write one HTML page for one run or several.",
        "moodal report runs/cmu_mosi/text --out report.html",
    )
    part.add_argument("folders", nargs="+", metavar="RUN")
    part.add_argument("--out", metavar="FILE", help="where to (default: report.html in the first folder)")
    part = _command(
        commands,
        "ablate",
        run.ablate,
        "Train every row of the paper's ablation table and print it with ours.",
        "moodal ablate cmu_mosi/text seed=1,2,3 data.root=DATA/cmu_mosi",
    )
    part.add_argument("recipe")
    _settings(part)
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    part.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    _json(part)


def _compare_command(commands: Commands) -> None:
    part = _command(
        commands,
        "compare",
        run.compare,
        "Train several methods on one corpus over the same seeds and print one table.",
        "moodal compare cmu_mosi linear text mib seed=1,2,3 data.root=DATA/cmu_mosi",
    )
    part.add_argument("corpus")
    part.add_argument(
        "methods", nargs="*", metavar="METHOD", help="the first is what the others are tested against (default: all)"
    )
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")
    part.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    part.set_defaults(settings=[])
    _json(part)


def _robustness_command(commands: Commands) -> None:
    part = _command(
        commands,
        "robustness",
        run.robustness,
        "Score stored runs while more and more is missing: curves, the area under them, tables.",
        "moodal robustness runs/ravdess --kind frames --rates 0,0.2,0.4,0.6,0.8,1 --out robustness/ravdess",
    )
    part.add_argument("folders", nargs="+", metavar="RUN", help="run folders, or folders of them; settings key=value")
    about = (
        "what happens: single steps dropped (the published protocol), whole modalities missing, ... (default: frames)"
    )
    part.add_argument("--kind", choices=get_args(Kind), help=about)
    part.add_argument("--rates", metavar="R,R", help="shares from 0 to 1 (default: 0,0.1 ... 1)")
    part.add_argument("--snr", metavar="DB,DB", help="of noise: signal-to-noise ratios (default: 20,10,5,0,-5,-10)")
    part.add_argument("--seeds", metavar="N,N", help="of the draws (default: 111, the published masks)")
    part.add_argument("--modalities", metavar="M,M", help="the streams it happens to (default: all it is meant for)")
    about = "score each run at the data.missing.rate it was trained with (one model per rate, as published)"
    part.add_argument("--matched", action="store_true", help=about)
    part.add_argument("--split", choices=("valid", "test"), default="test", help="split to score (default: test)")
    part.add_argument("--out", default="robustness", metavar="FOLDER", help="where to (default: robustness)")
    part.set_defaults(settings=[])
    _json(part)


def _clip_commands(commands: Commands) -> None:
    part = _command(
        commands, "predict", clips.predict, "Score clips, a folder of clips or a text, and say why.", "moodal predict clip.mp4"
    )  # fmt: skip
    part.add_argument("clips", nargs="*", metavar="CLIP", help="video or sound files, or folders of them")
    _served_run(part)
    part.add_argument("--text", help="what is said in the clip, or, without a clip, the text to score")
    part.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="seconds into the file where the clip begins"
    )
    part.add_argument("--end", type=float, metavar="S", help="where it ends (default: at the end of the file)")
    about = "who finds the words where none are given: pocketsphinx (default), none, whisper:NAME or whisper:FOLDER"
    part.add_argument("--recogniser", metavar="NAME", help=about)
    part.add_argument("--encoder", metavar="FOLDER", help="where the run's text encoder is now, if it has moved")
    about = (
        "ask a language model why: its settings, such as describe.model=NAME,describe.base_url=URL (default: measured)"
    )
    part.add_argument("--explainer", metavar="KEY=VALUE,..", help=about)
    part.add_argument("--fast", action="store_true", help="do not score each clip again without each modality")
    part.add_argument("--out", metavar="FILE", help="also write the predictions as JSON")
    _json(part)
    part = _command(
        commands, "serve", clips.serve, "Serve a run over HTTP, with a page to drop a clip on.", "moodal serve --port 8000"
    )  # fmt: skip
    _served_run(part)
    part.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    part.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    part.add_argument("settings", nargs="*", metavar="key=value", help="limits, for example clip_seconds=60 queue=128")
    part = _command(
        commands, "save", clips.save, "Write a run as a folder to give away: weights, settings, model card.",
        "moodal save runs/ravdess/text/0a1b2c3d/seed-1 --out my-model",
    )  # fmt: skip
    part.add_argument("folder", metavar="RUN")
    part.add_argument("--out", required=True, metavar="FOLDER")
    part.add_argument(
        "--without-encoder", action="store_true", help="leave a fine-tuned text encoder out of the weights"
    )


def _extract_command(commands: Commands) -> None:
    part = _command(
        commands, "extract", clips.extract, "Make a corpus of a folder of clips and a table of labels.",
        "moodal extract clips --labels labels.csv --out stores/mine",
    )  # fmt: skip
    part.add_argument("folder", metavar="DIR")
    part.add_argument(
        "settings", nargs="*", metavar="key=value", help="for example audio=prosody_25 words.recogniser=none"
    )
    part.add_argument(
        "--labels", required=True, metavar="CSV", help="columns file, label; optional: id, split, text, start, end, ..."
    )
    part.add_argument(
        "--out", required=True, metavar="STORE", help="folder to make; what is done lies in STORE.work until then"
    )
    part.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")
    part.add_argument("--engine", choices=("processes", "ray"), default="processes", help="ray: Ray Data, for clusters")
    part.add_argument("--cluster", metavar="ADDRESS", help="of a Ray cluster (default: this machine)")
    part.add_argument(
        "--limit", type=float, default=120.0, metavar="S", help="seconds that one clip may take (default: 120)"
    )
    part.add_argument("--low", type=float, help="lowest label of the scale (default: of those in the table)")
    part.add_argument("--high", type=float, help="highest label of the scale")
    part.add_argument(
        "--classes", metavar="A,B", help="the classes in their order (default: the words in the table, sorted)"
    )
    part.add_argument("--language", default="en", help="of clips whose row names none (default: en)")
    part.add_argument("--source", default="", help="where the clips are from; kept in the store")
    part.add_argument("--licence", default="", help="what may be done with them; kept in the store")
    part.add_argument("--retry", action="store_true", help="try clips again that were faulty before")
    part.add_argument("--overwrite", action="store_true", help="replace an existing store")
    _json(part)


def _explaining_commands(commands: Commands) -> None:
    part = _command(
        commands, "explain", clips.explain, "Have a multimodal language model explain the clips of a store.",
        "moodal explain stores/mine --media clips --out said.jsonl --into stores/told describe.model=NAME "
        "describe.base_url=http://localhost:8000/v1",
    )  # fmt: skip
    _asked_model(part, "describe.model=NAME describe.base_url=URL refine.model=NAME ... ask.concurrency=4")
    part.add_argument("--split", action="append", choices=("train", "valid", "test"), help="clips to ask about")
    part.add_argument("--into", metavar="STORE", help="write the store with the explanations in it there")
    part.add_argument("--plan", metavar="NAME", help="whose answers go into it, where the file holds those of several")
    part.add_argument("--keep", action="store_true", help="texts that the clips bring stay")
    part = _command(
        commands, "judge", clips.judge, "The zero-shot baseline: a multimodal language model gives the score.",
        "moodal judge stores/mine --media clips --out scores.jsonl judge.model=NAME judge.base_url=http://localhost:8000/v1",
    )  # fmt: skip
    _asked_model(part, "judge.model=NAME judge.base_url=URL judge.frames=8 ask.concurrency=4 ...")
    part.add_argument("--runs", default="runs", help="folder of runs (default: runs)")


def _asked_model(part: argparse.ArgumentParser, example: str) -> None:
    part.add_argument("store", metavar="STORE")
    part.add_argument("settings", nargs="*", metavar="key=value", help=example)
    part.add_argument("--out", required=True, metavar="JSONL", help="answers; what is in it is not asked again")
    part.add_argument(
        "--media", metavar="DIR", help="folder of the clips' files (default: words and measurements alone)"
    )
    _json(part)


def _served_run(part: argparse.ArgumentParser) -> None:
    about = "run folder, folder of moodal save, or hub repository (default: the run that ships with the package)"
    part.add_argument("--run", dest="run_folder", default="pretrained", metavar="RUN", help=about)
    part.add_argument("--accelerator", default="cpu", help="cpu, gpu, auto (default: cpu)")


def _importing_commands(commands: Commands) -> None:
    part = _command(
        commands,
        "import",
        run.import_,
        "Import an MMSA-format pickle into a store, safely.",
        "moodal import unaligned_50.pkl --corpus mosi --out stores/mosi",
    )
    part.add_argument("file", metavar="FILE")
    part.add_argument("--corpus", required=True, help="mosi, mosei, sims or sims_v2")
    part.add_argument("--out", metavar="STORE", help="folder to make (default: stores/<corpus>)")
    part.add_argument("--overwrite", action="store_true", help="replace an existing store")
    _json(part)
    part = _command(
        commands,
        "import-checkpoint", run.import_checkpoint, "Make a run folder from a checkpoint of a method's official code.",
        "moodal import-checkpoint text mosi_best.pth --out runs/official",
    )  # fmt: skip
    part.add_argument("method", help="the method, for example text")
    part.add_argument("file", metavar="FILE")
    part.add_argument("--out", required=True, metavar="RUN")
    _settings(part)


def _looking_commands(commands: Commands) -> None:
    part = _command(
        commands,
        "parity",
        run.parity,
        "Check this build against numbers made by authors' code.",
        "moodal parity parity/text/*.safetensors",
    )
    part.add_argument("files", nargs="+", metavar="FILE.safetensors")
    _json(part)
    part = _command(
        commands,
        "bench",
        run.bench,
        "Run a speed benchmark of the checkout's benchmarks folder.",
        "moodal bench text_step --json",
    )
    part.add_argument("name", nargs="?", help="file name without .py (default: list them)")
    part.add_argument("rest", nargs=argparse.REMAINDER, help="options of the benchmark")
    part = _command(commands, "list", run.list_, "List methods, corpora or recipes.", "moodal list methods")
    part.add_argument("what", choices=("methods", "corpora", "recipes"))
    part = _command(
        commands,
        "show",
        run.show,
        "Show all settings of a recipe and where each comes from.",
        "moodal show cmu_mosi/text model.width=64",
    )
    part.add_argument("recipe")
    _settings(part)
    _command(commands, "check", run.check, "Check every recipe: settings, groups and stages.", "moodal check")


def _json(part: argparse.ArgumentParser) -> None:
    part.add_argument("--json", action="store_true", help="print one JSON object as the last line")


if __name__ == "__main__":
    sys.exit(main())
