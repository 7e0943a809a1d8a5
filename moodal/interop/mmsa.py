"""The field's pickles, in the layout of MMSA, imported once into a store: checked, cleaned, counted.

A file is a dict of ``train``, ``valid`` and ``test``, each a dict of columns of equal length: ``id``,
``regression_labels`` (also ``_T``, ``_A``, ``_V``), ``raw_text``, ``text`` (n, T, 768), ``text_bert`` (n, 3, T),
``audio`` and ``vision`` (n, T, D) with ``audio_lengths`` and ``vision_lengths``. TEXT's files (Rao et al. 2026) add
``raw_text_en`` and sentences of a video language model with their token triples (``..._bert``). How lengths are found
is written at the top of ``mmsa_arrays.py``; what was found is in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moodal.core.errors import DataError, did_you_mean
from moodal.core.spec import MODALITIES, Modality, Regression, Role, Task
from moodal.data import CORPORA
from moodal.data.corpus import SPLITS, Clip, CorpusFacts, FeatureRecipe, RawCorpus
from moodal.data.ragged import Ragged
from moodal.data.store import is_store, save_store
from moodal.interop.mmsa_arrays import as_numbers, read_triple, tokens_to_ragged
from moodal.interop.mmsa_report import ImportReport, LabelReport
from moodal.interop.mmsa_streams import Columns, Progress, read_streams
from moodal.interop.unpickle import load_plain

#: corpora that come in this layout.
IMPORTED = ("mosi", "mosei", "sims", "sims_v2")

_EXPLANATIONS: Mapping[Role, str] = {"audio": "audio_clue", "vision": "visual_clue", "comment": "clue_summary"}
_NOTES = ("reason", "text_clue")
_UNIMODAL: Mapping[Modality, str] = {m: f"regression_labels_{m[0].upper()}" for m in MODALITIES}
_VOCABULARIES = {"bert-base-uncased": 30522, "bert-base-chinese": 21128}
_TOLERANCE = 1e-4  # of the label range: labels are stored as float32
_SMALLEST_STEP = 0.01  # of a label grid; finer ones are no grid
_NAMED = 5  # ids listed in a sentence

_TEXT_COLUMNS = ("raw_text", "raw_text_en", *_EXPLANATIONS.values(), *_NOTES)
_TRIPLES = ("text_bert", "text_en_bert", *(f"{column}_bert" for column in _EXPLANATIONS.values()))
_READ = {
    *("id", "regression_labels", *_UNIMODAL.values(), *_TEXT_COLUMNS, *_TRIPLES),
    *(*MODALITIES, "audio_lengths", "vision_lengths"),
}


def import_file(
    path: Path,
    *,
    corpus: str,
    out: Path,
    modalities: Sequence[Modality] = MODALITIES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Import ``path`` as ``corpus`` into a store at ``out`` and report what was found.

    ``modalities``: whose features to import; audio and vision named there must be in the file, text may be missing.
    Raises ``DataError`` in one sentence for anything that would make the result wrong: a column or split missing, row
    counts that differ, ids given twice, labels missing or out of range, arrays of another shape, a file that is no
    plain pickle. Published sizes, shared videos and odd lengths are warnings in the report.
    """
    facts = _facts(corpus)
    if is_store(out) and not overwrite:  # said before an hour of reading, not after
        raise DataError(f"{out} already holds a store; choose another folder, or overwrite it (overwrite=True).")
    tell = progress or (lambda _what, _done, _total: None)
    columns, checksum = _read(path, tell)
    _check_columns(columns, modalities, path.name)
    ids = {split: _texts(columns[split]["id"], join="_") for split in SPLITS}
    sizes = {split: len(ids[split]) for split in SPLITS}
    report = ImportReport(corpus, path.name, checksum, path.stat().st_size, sizes, published=dict(facts.size))
    _check_ids(ids, path.name, report)
    clips = _clips(columns, ids, facts, report)
    tokens, vocabulary = _tokens(columns, facts, report)
    streams = read_streams(columns, facts, modalities=modalities, report=report, tell=tell)
    if not streams and not tokens and not any(clip.text for clip in clips):
        raise DataError(f"{path.name} holds neither text nor audio nor vision; there is nothing to import.")
    _remark_sizes(report)
    raw = RawCorpus(
        facts=facts,
        clips=clips,
        streams=streams,
        recipes={m: _recipe(f"mmsa-{m}", stream.width, report) for m, stream in streams.items()},
        tokens=tokens,
        token_recipe=_recipe(vocabulary, 1, report) if tokens else None,
        source={"file": path.name, "sha256": checksum, "bytes": report.bytes},
    )
    tell("write", 0, 1)
    save_store(raw, out, overwrite=overwrite, report=report.to_json())
    tell("write", 1, 1)
    return report


def _facts(corpus: str) -> CorpusFacts:
    if corpus not in IMPORTED:
        raise DataError(
            f"There is no import for '{corpus}'; known: {', '.join(IMPORTED)}{did_you_mean(corpus, IMPORTED)}"
        )
    return CORPORA[corpus].facts


def _recipe(name: str, width: int, report: ImportReport) -> FeatureRecipe:
    """Features of a file are known by its checksum alone: nothing in it says how they were made."""
    settings = {"sha256": report.sha256, "aligned": report.aligned}
    return FeatureRecipe(name=name, version="1", width=width, settings=settings)


def _remark_sizes(report: ImportReport) -> None:
    for split, published in report.published.items():
        if report.sizes[split] != published:
            report.warnings.append(f"{split} has {report.sizes[split]} clips; published are {published}.")


# ---- splits and columns


def _read(path: Path, tell: Progress) -> tuple[Columns, str]:
    """The columns by split and the file's checksum; the caller holds the only reference to each array."""
    content, checksum = load_plain(path, progress=lambda done, size: tell("read", done, size))
    return _splits(content, path.name), checksum


def _splits(content: object, file: str) -> Columns:
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}; a dict of train, valid and test was expected.")
    for split in SPLITS:
        if split not in content:
            have = ", ".join(map(str, content)) or "nothing"
            raise DataError(f"{file} has no split '{split}' (it has {have}); train, valid and test were expected.")
        if not isinstance(content[split], dict):
            raise DataError(f"{file}: {split} is a {type(content[split]).__name__}; a dict of columns was expected.")
    return {split: {str(name): column for name, column in content[split].items()} for split in SPLITS}


def _check_columns(columns: Columns, modalities: Sequence[Modality], file: str) -> None:
    """Every column needed is there, in all splits or in none, with one row for each clip."""
    required = ["id", "regression_labels", *(m for m in modalities if m != "text")]
    seen = list(dict.fromkeys(name for split in SPLITS for name in columns[split]))
    for split in SPLITS:
        have = columns[split]
        for name in [*required, *(column for column in seen if column in _READ)]:
            if name not in have:
                listed = ", ".join(sorted(have))
                hint = did_you_mean(name, have)
                raise DataError(f"{file}: {split} has no column '{name}' (it has {listed}){hint}")
        _check_row_counts(have, split, file)


def _check_row_counts(have: Mapping[str, Any], split: str, file: str) -> None:
    rows = {}
    for name in have:
        if name in _READ:
            column = have[name]
            if not isinstance(column, (list, tuple, np.ndarray)) or (
                isinstance(column, np.ndarray) and column.ndim == 0
            ):
                raise DataError(
                    f"{file}: {split} {name} is a {type(have[name]).__name__}; one row for each clip was expected."
                )
            rows[name] = len(have[name])
    if rows["id"] == 0:
        raise DataError(f"{file}: {split} is empty; train, valid and test need clips.")
    different = [f"{name} {count}" for name, count in rows.items() if count != rows["id"]]
    if different:
        raise DataError(
            f"{file}: {split} has {rows['id']} ids, but rows of {', '.join(different)}; get the file again."
        )


def _texts(column: Sequence[Any], *, join: str = " ") -> list[str]:
    """A column of texts as plain strings: bytes decoded, parts joined, None and NaN empty."""

    def text(item: Any) -> str:
        if isinstance(item, bytes):
            return item.decode("utf-8", "replace")
        if isinstance(item, (list, tuple, np.ndarray)):
            return join.join(text(part) for part in item)
        return "" if item is None or item != item else str(item)  # NaN differs from itself

    return [text(item).strip() for item in column]


# ---- ids and labels


def _check_ids(ids: Mapping[str, list[str]], file: str, report: ImportReport) -> None:
    everywhere = Counter(name for names in ids.values() for name in names)
    if "" in everywhere:
        raise DataError(f"{file}: {everywhere['']} clips have an empty id; get the file again.")
    twice = [name for name, count in everywhere.items() if count > 1]
    if twice:
        where = {name: [s for s in SPLITS if name in ids[s]] for name in twice[:_NAMED]}
        across = any(len(set(splits)) > 1 for splits in where.values())
        kind = "in more than one split" if across else "more than once"
        listed = ", ".join(f"{name} ({', '.join(splits)})" for name, splits in where.items())
        raise DataError(f"{file}: {len(twice)} ids appear {kind}: {listed}; each clip needs an id of its own.")
    videos = {split: {_video(name) for name in names} - {""} for split, names in ids.items()}
    for one, two in (("train", "valid"), ("train", "test"), ("valid", "test")):
        shared = sorted(videos[one] & videos[two])
        if shared:
            some = ", ".join(shared[:_NAMED])
            report.warnings.append(f"{one} and {two} share {len(shared)} videos ({some}), so speakers are not unseen.")


def _video(name: str) -> str:
    """The video of an id ``video$_$clip`` or ``video/clip``; empty for other ids."""
    for mark in ("$_$", "/"):
        if mark in name:
            return name.rpartition(mark)[0]
    return ""


def _labels(column: Any, where: str, ids: Sequence[str], task: Task) -> np.ndarray:
    """(n,) float64 labels, checked to be numbers in the corpus's range."""
    assert isinstance(task, Regression)  # every corpus of IMPORTED is one
    values = as_numbers(column, where)
    if values.size != len(ids):
        raise DataError(
            f"{where} is {values.dtype} of shape {values.shape}; one number for each of {len(ids)} clips was expected."
        )
    values = values.reshape(len(ids)).astype(np.float64)
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing):
        raise DataError(
            f"{where} has {len(missing)} labels that are no numbers: {_named(ids, missing)}; get the file again."
        )
    outside = np.flatnonzero((values < task.low - _TOLERANCE) | (values > task.high + _TOLERANCE))
    if len(outside):
        found = f"{values.min():g} to {values.max():g}"
        raise DataError(
            f"{where} has {len(outside)} labels outside [{task.low:g}, {task.high:g}] (found {found}): "
            f"{_named(ids, outside)}; is this the right corpus?"
        )
    return values


def _named(ids: Sequence[str], rows: np.ndarray) -> str:
    return ", ".join(ids[i] for i in rows[:_NAMED]) + (", ..." if len(rows) > _NAMED else "")


def _label_report(values: np.ndarray, report: ImportReport) -> None:
    """Range and grid: the median (failing that, the least) difference of neighbours on which nearly all labels lie."""
    distinct = np.unique(np.round(values, 4))
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    report.labels = LabelReport(low, high, mean, len(distinct), None)
    gaps = np.diff(distinct)
    for step in (float(np.median(gaps)), float(gaps.min())) if len(gaps) else ():
        places = (values - low) / step
        off = int((np.abs(places - np.round(places)) > 0.02).sum())
        if step >= _SMALLEST_STEP and off <= 0.01 * len(values):
            report.labels.step = round(step, 3)
            if off:
                report.notes.append(f"{off} of {len(values)} labels lie off the grid of steps of {step:.3g}.")
            return


# ---- the table of clips


def _clips(
    columns: Columns, ids: Mapping[str, list[str]], facts: CorpusFacts, report: ImportReport
) -> tuple[Clip, ...]:
    clips: list[Clip] = []
    labels = []
    for split in SPLITS:
        have = columns[split]
        labels.append(_labels(have["regression_labels"], f"{split} regression_labels", ids[split], facts.task))
        clips += _split_clips(have, split, ids[split], labels[-1])
    _label_report(np.concatenate(labels), report)
    report.texts = {
        "transcript": sum(bool(clip.text) for clip in clips),
        **{f"explanation of {role}": sum(role in clip.explanations for clip in clips) for role in _EXPLANATIONS},
        **dict(Counter(f"note {name}" for clip in clips for name in clip.notes)),
    }
    if "raw_text" not in columns["train"] and "raw_text_en" not in columns["train"]:
        report.notes.append("The file has no transcripts (raw_text).")
    elif report.texts["transcript"] < len(clips):
        report.notes.append(f"{len(clips) - report.texts['transcript']} clips have an empty transcript.")
    unread = sorted({name for split in SPLITS for name in columns[split]} - _READ)
    if unread:
        report.notes.append(f"Columns not read: {', '.join(unread)}.")
    return tuple(clips)


def _split_clips(have: Mapping[str, Any], split: str, ids: Sequence[str], labels: np.ndarray) -> list[Clip]:
    count = len(ids)
    texts = {name: _texts(have[name]) if name in have else [""] * count for name in _TEXT_COLUMNS}
    translated = "raw_text_en" in have
    words = texts["raw_text_en"] if translated else texts["raw_text"]
    unimodal = {m: _unimodal(have[name], count, f"{split} {name}") for m, name in _UNIMODAL.items() if name in have}
    clips = []
    for i, name in enumerate(ids):
        explained = {role: texts[column][i] for role, column in _EXPLANATIONS.items() if texts[column][i]}
        notes = {column: texts[column][i] for column in _NOTES if texts[column][i]}
        if translated and texts["raw_text"][i]:
            notes["raw_text"] = texts["raw_text"][i]
        clips.append(
            Clip(
                id=name,
                split=split,
                text=words[i],
                label=float(labels[i]),
                labels={m: float(values[i]) for m, values in unimodal.items() if np.isfinite(values[i])},
                explanations=explained,
                explained_by=dict.fromkeys(explained, "file"),
                group=_video(name),
                notes=notes,
            )
        )
    return clips


def _unimodal(column: Any, count: int, where: str) -> np.ndarray:
    values = as_numbers(column, where)
    if values.size != count:
        raise DataError(
            f"{where} is {values.dtype} of shape {values.shape}; one number for each of {count} clips was expected."
        )
    return values.reshape(count)


# ---- tokens


def _tokens(columns: Columns, facts: CorpusFacts, report: ImportReport) -> tuple[dict[str, Ragged], str]:
    """Token streams by "text" and role, and the name of their vocabulary.

    One vocabulary serves all streams: English wherever the file has English triples. Chinese triples of a transcript
    that was translated would not be the clip's text, so they are left out beside English ones.
    """
    train = columns["train"]
    english = facts.language == "en" or "text_en_bert" in train
    chosen: dict[str, str] = {"text": "text_en_bert" if "text_en_bert" in train else "text_bert"}
    chosen |= {role: f"{column}_bert" for role, column in _EXPLANATIONS.items()}
    chosen = {role: column for role, column in chosen.items() if column in train}
    if not english and len(chosen) > 1:
        left_out = chosen.pop("text", None)
        english = True
        if left_out is not None:
            report.notes.append(f"{left_out} is not kept: it is Chinese, and the explanations' tokens are English.")
    vocabulary = "bert-base-uncased" if english else "bert-base-chinese"
    tokens = {}
    for role, column in chosen.items():
        triples = [read_triple(columns[split][column], f"{split} {column}") for split in SPLITS]
        tokens[role] = tokens_to_ragged(triples)
        report.tokens[role] = int(tokens[role].lengths.max())
        largest = int(tokens[role].values.max(initial=0))
        if largest >= _VOCABULARIES[vocabulary]:
            report.warnings.append(f"{column} holds the id {largest}, so it is not of {vocabulary}.")
    return tokens, vocabulary
