"""CMU-MOSI: English film reviews on YouTube with sentiment intensity; text, word times and clip vectors.

Source   Zadeh et al., "MOSI: Multimodal Corpus of Sentiment Intensity", 2016, arXiv 1606.06259. Files expected in the
         folder: mosi.csv, mosi_word_sequences.jsonl.gz, mosi_utterance_features.npz.
Labels   sentiment in [-3, 3].
Leak     text_cnn100 and video_3dcnn100 come from networks trained with labels on the training part of ``split_utt``,
         which holds most of the official test clips. They are given with that split only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from moodal.core.errors import ConfigError, DataError
from moodal.core.files import sha256
from moodal.core.spec import Modality, Regression
from moodal.data.corpus import Clip, CorpusFacts, FeatureRecipe, RawCorpus, ReaderConfig
from moodal.data.ragged import Ragged
from moodal.data.tables import (
    Row,
    known_split,
    need_folder,
    need_splits,
    number,
    one_step,
    read_table,
    read_vectors,
)

log = logging.getLogger(__name__)
TABLE, WORDS, VECTORS = "mosi.csv", "mosi_word_sequences.jsonl.gz", "mosi_utterance_features.npz"
NAME = "cmu_mosi"
FeatureSet = Literal["audio_opensmile73", "text_cnn100", "video_3dcnn100"]
#: Feature set -> the stream it is and the name of its recipe.
SETS: Mapping[str, tuple[Modality, str]] = {
    "text_cnn100": ("text", "text_cnn100"),
    "audio_opensmile73": ("audio", "opensmile_73"),
    "video_3dcnn100": ("vision", "video_3dcnn100"),
}
TRAINED_WITH_LABELS = ("text_cnn100", "video_3dcnn100")
#: Share of the training videos of ``split_utt``, which has no validation part, that becomes one.
VALID_SHARE = 0.15

FACTS = CorpusFacts(
    name=NAME,
    title="CMU-MOSI",
    language="en",
    task=Regression(low=-3.0, high=3.0),
    protocol="mosi",
    source="Zadeh et al. 2016, arXiv 1606.06259",
    licence="academic research use; the speakers are YouTube users",
    size={"train": 1284, "valid": 229, "test": 686},
    widths={"audio": 73},
)


@dataclass(frozen=True, kw_only=True)
class CmuMosiConfig(ReaderConfig):
    """``split``: "official", or "utterance", the older one without a validation part, for which 15 % of the training
    videos are taken (chosen by the SHA-256 of their name). ``features``: the clip vectors to read."""

    split: Literal["official", "utterance"] = "official"
    features: tuple[FeatureSet, ...] = ("audio_opensmile73",)

    def __post_init__(self) -> None:
        leaking = [name for name in self.features if name in TRAINED_WITH_LABELS]
        if self.split == "official" and leaking:
            raise ConfigError(
                [
                    f"{', '.join(leaking)} was trained with the labels of most official test clips, so scores on the "
                    "official split would be wrong; set reader.split=utterance, or leave it out of reader.features."
                ]
            )


class CmuMosi:
    """The reader of CMU-MOSI in the form described at the top of this file."""

    Config: ClassVar[type[ReaderConfig]] = CmuMosiConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:  # noqa: ARG004 (nothing here is worth caching)
        """Read the folder ``root``. Raises DataError with a sentence for whatever is missing or wrong in it."""
        files = (TABLE, WORDS, VECTORS) if cfg.features else (TABLE, WORDS)
        folder = need_folder(root, NAME, files)
        column = "split" if cfg.split == "official" else "split_utt"
        rows = read_table(folder / TABLE, NAME, ("id", "video_id", "text", "label", column))
        splits = _official(rows) if cfg.split == "official" else _by_utterance(rows)
        need_splits(splits, NAME)
        words = _read_words(folder / WORDS)
        clips = tuple(_clip(row, split, words) for row, split in zip(rows, splits, strict=True))
        unknown = sum(not clip.words for clip in clips)
        if unknown:
            log.warning("%s: %d of %d clips have no word times", NAME, unknown, len(clips))
        streams, recipes = _read_streams(folder / VECTORS, cfg.features, [clip.id for clip in clips])
        return RawCorpus(
            facts=_facts(clips, cfg),
            clips=clips,
            streams=streams,
            recipes=recipes,
            source={"split": cfg.split, "files": {file: sha256(folder / file) for file in files}},
        )


def _official(rows: list[Row]) -> list[str]:
    return [known_split(row, "split", NAME) for row in rows]


def _by_utterance(rows: list[Row]) -> list[str]:
    """``split_utt``, with a validation part made of whole training videos, the same on every machine."""
    given = [known_split(row, "split_utt", NAME, ("train", "test")) for row in rows]
    videos = {row["video_id"] for row, split in zip(rows, given, strict=True) if split == "train"}
    ordered = sorted(videos, key=lambda video: hashlib.sha256(video.encode()).hexdigest())
    valid = set(ordered[: max(1, round(VALID_SHARE * len(ordered)))])
    return [
        "valid" if split == "train" and row["video_id"] in valid else split
        for row, split in zip(rows, given, strict=True)
    ]


def _clip(row: Row, split: str, words: Mapping[str, tuple[tuple[str, float, float], ...]]) -> Clip:
    text_zh = row.get("text_zh") or ""
    return Clip(
        id=row["id"],
        split=split,
        text=row["text"].strip().lower(),  # the file's transcripts are in capitals
        label=number(row, "label", NAME, low=FACTS.task.low, high=FACTS.task.high),  # type: ignore[union-attr]
        words=words.get(row["id"], ()),
        group=row["video_id"],
        notes={"text_zh": text_zh} if text_zh else {},
    )


def _read_words(path: Path) -> dict[str, tuple[tuple[str, float, float], ...]]:
    """Clip id -> (word, start, end) in seconds from the start of the clip."""
    found = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                item = json.loads(line)
                times = zip(item["words"], item["start"], item["end"], strict=True)
                found[str(item["id"])] = tuple((str(word), float(start), float(end)) for word, start, end in times)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{NAME}: {path} is damaged ({type(error).__name__}: {error}); "
            "expected lines of id, words, start, end. Get it again."
        ) from error
    return found


def _read_streams(
    path: Path, features: tuple[FeatureSet, ...], ids: list[str]
) -> tuple[dict[Modality, Ragged], dict[Modality, FeatureRecipe]]:
    streams: dict[Modality, Ragged] = {}
    recipes: dict[Modality, FeatureRecipe] = {}
    if not features:
        return streams, recipes
    arrays = read_vectors(path, NAME, ("id", *features))
    for name, (modality, recipe) in SETS.items():
        if name in features:
            stream = one_step(ids, arrays["id"], np.asarray(arrays[name]), corpus=NAME, what=name)
            streams[modality] = stream
            recipes[modality] = FeatureRecipe(name=recipe, version="1", width=stream.width, settings={"per": "clip"})
    return streams, recipes


def _facts(clips: tuple[Clip, ...], cfg: CmuMosiConfig) -> CorpusFacts:
    """The published facts; without sizes for the split that has no published validation part."""
    if cfg.split == "utterance":
        return replace(FACTS, size={})
    found = {name: sum(clip.split == name for clip in clips) for name in FACTS.size}
    if found != FACTS.size:
        log.warning("%s: sizes of the splits are %s; published are %s", NAME, found, dict(FACTS.size))
    return FACTS
