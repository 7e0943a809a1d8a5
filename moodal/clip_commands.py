"""The commands about clips: one function each, from parsed options to calls and printed lines. Returns the exit code."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moodal.commands import print_json, print_scores
from moodal.core.config import parse_override, resolve
from moodal.core.errors import MissingExtra, MoodalError, check
from moodal.core.spec import Role

if TYPE_CHECKING:  # these are slow to import
    from moodal.prediction import Prediction
    from moodal.predictor import Predictor

log = logging.getLogger(__name__)
T = TypeVar("T")
#: What counts as a clip in a folder; a file named on the command line is tried whatever its name.
ENDINGS = frozenset(
    f".{name}"
    for name in (
        "mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "3gp", "ogv",
        "wav", "flac", "mp3", "m4a", "aac", "ogg", "opus", "wma",
    )
)  # fmt: skip


def _typed(kind: type[T], settings: Sequence[str]) -> T:
    """``kind`` (a dataclass of settings) from key=value texts; every fault at once."""
    found: T = resolve(kind, [("command line", dict(parse_override(text) for text in settings))], {}).config
    return found


def demo(options: argparse.Namespace) -> int:
    """The main job: train, compare and report on the synthetic corpus, then score real clips with the run that ships."""
    from moodal.jobs import demo as train_and_report

    told = train_and_report(Path(options.runs))
    print(_scored_clips(), end="\n\n")
    print(told)
    return 0


def _scored_clips() -> str:
    """What the shipped run says of the shipped clips, or which package is missing for that."""
    from moodal.prediction import format_prediction
    from moodal.predictor import Predictor

    try:
        predictor = Predictor.open()
        found = [format_prediction(predictor.clip(file)) for file in _clips([str(Path(__file__).parent / "clips")])]
    except MissingExtra as fault:
        return f"no clip was scored: {fault}"
    return "\n\n".join(
        ["Two real clips, scored by the run that ships with the package (its card: pretrained_run/README.md):", *found]
    )


def extract(options: argparse.Namespace) -> int:
    """A folder of clips and a table of labels become a store."""
    from moodal.console import WaitingBar
    from moodal.features.clip import ClipSettings
    from moodal.features.extract import extract_folder
    from moodal.features.worklist import LabelSettings

    labels = LabelSettings(
        low=options.low, high=options.high, classes=tuple(filter(None, (options.classes or "").split(","))),
        language=options.language, source=options.source, licence=options.licence,
    )  # fmt: skip
    with WaitingBar("clips") as bar:
        report = extract_folder(
            Path(options.folder), Path(options.labels), Path(options.out), settings=_typed(ClipSettings, options.settings),
            label_settings=labels, workers=options.workers, engine=options.engine, limit=options.limit,
            overwrite=options.overwrite, retry=options.retry, progress=bar, cluster=options.cluster,
        )  # fmt: skip
    print("\n".join(report.lines()))
    if all(report.sizes.values()):
        print(f"train on it: moodal train folder/text data.root={report.store}")
    if options.json:
        print_json(report.as_json())
    return 0


def predict(options: argparse.Namespace) -> int:
    """Score clips, one after another; a clip that cannot be read gets its sentence and the others go on."""
    from moodal.console import WaitingBar
    from moodal.core.files import write_json
    from moodal.features.words import WordSettings
    from moodal.prediction import format_prediction
    from moodal.predictor import Predictor

    files = _clips(options.clips)
    check(
        options.text is None or len(files) <= 1,
        f"--text is what is said in one clip, and {len(files)} were given; leave it out, or put texts beside the clips as .txt files.",
    )
    words = None if options.recogniser is None else WordSettings(recogniser=options.recogniser)
    predictor = Predictor.open(
        options.run_folder, encoder=options.encoder, words=words, accelerator=options.accelerator
    )
    found: list[Prediction] = []
    faults: dict[str, str] = {}
    with WaitingBar("clips") as bar:
        for done, file in enumerate(files, start=1):
            try:
                found.append(_predicted(predictor, file, options))
            except MoodalError as fault:
                faults[str(file)] = str(fault)
            if len(files) > 1:
                bar(done, len(files))
    if not files:
        found.append(predictor.text(options.text or "", evidence=not options.fast))
    if not options.json:
        print("\n\n".join(format_prediction(prediction) for prediction in found))
    for name, sentence in faults.items():
        log.error("error: %s: %s", name, sentence)
    told = {"predictions": [prediction.as_json() for prediction in found], "faults": faults}
    if options.out is not None:
        write_json(Path(options.out), told)
    if options.json:
        print_json(told)
    return 2 if faults else 0


def _predicted(predictor: Predictor, file: Path, options: argparse.Namespace) -> Prediction:
    """One file predicted, explained by a language model where one is asked for."""
    clip = predictor.extract(file, text=options.text, start=options.start, end=options.end)
    told: dict[Role, str] = {}
    if options.explainer is not None:
        from moodal.explain.llm.generate import explain_clip
        from moodal.explain.llm.settings import ExplainSettings

        settings = _typed(ExplainSettings, options.explainer.split(","))
        told = explain_clip(clip, settings, start=options.start, end=options.end)
    return predictor.predict([clip], evidence=not options.fast, explanations=[told])[0]


def _clips(given: Sequence[str]) -> list[Path]:
    """The files named, and those of known kinds below the folders named, in order."""
    files: list[Path] = []
    for text in given:
        path = Path(text).expanduser()
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        check(bool(inside), f"{path} holds no clips; files of these kinds are taken: {', '.join(sorted(ENDINGS))}.")
        files += inside
    return files


def save(options: argparse.Namespace) -> int:
    """Write a run as a folder to give away."""
    from moodal.pretrained import open_saved, save_pretrained

    folder = save_pretrained(open_saved(options.folder), Path(options.out), encoder=not options.without_encoder)
    print(f"saved {folder}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """Serve a run over HTTP until Ctrl-C."""
    from moodal.serving.run import run
    from moodal.serving.settings import ServeSettings

    settings = _typed(ServeSettings, options.settings)
    run(options.run_folder, host=options.host, port=options.port, settings=settings, announce=_announce)
    return 0


def _announce(address: str) -> None:
    print(f"open {address}  (Ctrl-C stops)", flush=True)


def explain(options: argparse.Namespace) -> int:
    """Ask a multimodal language model about every clip of a store, and put what it said into the store."""
    from moodal.console import WaitingBar
    from moodal.explain.llm.generate import explain_store
    from moodal.explain.llm.join import join_store
    from moodal.explain.llm.settings import ExplainSettings

    store, answers = Path(options.store), Path(options.out)
    settings = _typed(ExplainSettings, options.settings)
    media = None if options.media is None else Path(options.media)
    with WaitingBar("clips") as bar:
        report = explain_store(
            store, settings=settings, media=media, out=answers, splits=options.split or (), progress=bar
        )
    print("\n".join(report.lines()))
    told: dict[str, Any] = {"explained": report.done, "clips": report.clips, "failed": report.failed}
    if options.into is not None:
        print(
            "\n".join(join_store(store, answers, out=Path(options.into), plan=options.plan, keep=options.keep).lines())
        )
        print(f"explanations are in {options.into}")
    if options.json:
        print_json(told)
    return 2 if report.stopped else 0


def judge(options: argparse.Namespace) -> int:
    """The zero-shot baseline: a multimodal language model gives the score, and the corpus's protocol scores it."""
    from moodal.console import WaitingBar
    from moodal.data.corpus import SPLITS
    from moodal.explain.llm.judge import judge_store
    from moodal.explain.llm.settings import JudgeSettings
    from moodal.zero_shot import zero_shot_run

    store, answers = Path(options.store), Path(options.out)
    settings = _typed(JudgeSettings, options.settings)
    media = None if options.media is None else Path(options.media)
    with WaitingBar("clips") as bar:
        report = judge_store(store, settings=settings, media=media, out=answers, progress=bar)
    print("\n".join(report.lines()))
    if report.stopped:
        return 2
    run = zero_shot_run(store, answers, runs=Path(options.runs))
    print_scores({split: run.scores[split] for split in SPLITS if split in run.scores})
    print(f"run   {run.folder}")
    if options.json:
        print_json(run.scores)
    return 0
