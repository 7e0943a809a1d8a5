"""RAVDESS speech: actors say two neutral sentences in eight emotions; voice from sound files, face as action units.

Source   Livingstone and Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song", PLoS ONE 13(5), 2018.
         Files expected in the folder: ravdess.csv; FLAC or WAV files named by clip id, loose or inside *.tar;
         ravdess_utterance_features.npz with vision_au35 (OpenFace action units, mean over the clip).
Labels   neutral, calm, happy, sad, angry, fearful, disgust, surprised.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import ConfigError, DataError
from moodal.core.files import sha256
from moodal.core.spec import Classification
from moodal.data.corpus import Clip, CorpusFacts, FeatureRecipe, RawCorpus, ReaderConfig
from moodal.data.extractors import EXTRACTORS, LibrosaSettings, MediaFile
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
NAME, TABLE, VECTORS = "ravdess", "ravdess.csv", "ravdess_utterance_features.npz"
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
COLUMNS = ("id", "emotion", "emotion_id", "text", "actor")

FACTS = CorpusFacts(
    name=NAME,
    title="RAVDESS speech",
    language="en",
    task=Classification(EMOTIONS),
    protocol="emotion",
    source="Livingstone and Russo 2018, PLoS ONE 13(5)",
    licence="CC BY-NC-SA 4.0",
    size={"train": 840, "valid": 180, "test": 180},
    widths={"audio": 33, "vision": 35},
)


@dataclass(frozen=True, kw_only=True)
class RavdessConfig(ReaderConfig):
    """Whose clips are for what, and how the voice is measured.

    ``valid_actors``, ``test_actors``: numbers of the actors of these splits, all others train; with neither, the
    table's column ``split`` decides. ``audio``: settings of the extractor librosa_33. ``workers``: processes that
    extract (0: one per core).
    """

    valid_actors: tuple[int, ...] = ()
    test_actors: tuple[int, ...] = ()
    audio: LibrosaSettings = field(default_factory=LibrosaSettings)
    workers: int = 0

    def __post_init__(self) -> None:
        faults = []
        both = sorted(set(self.valid_actors) & set(self.test_actors))
        if both:
            faults.append(f"actors {both} are in valid_actors and in test_actors; splits must not share an actor.")
        if bool(self.valid_actors) != bool(self.test_actors):
            faults.append("valid_actors and test_actors belong together; give both, or neither for the table's split.")
        if self.workers < 0:
            faults.append(f"workers is {self.workers}; give 0 for one per core, or a number of processes.")
        if faults:
            raise ConfigError(faults)


class Ravdess:
    """The reader of RAVDESS in the form described at the top of this file; any of the 24 actors."""

    Config: ClassVar[type[ReaderConfig]] = RavdessConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:
        """Read the folder ``root``; frame features are kept below ``cache`` by recipe and content of the sound files.

        Raises DataError with a sentence for whatever is missing or wrong.
        """
        folder = need_folder(root, NAME, (TABLE,))
        own_split = not cfg.test_actors
        rows = read_table(folder / TABLE, NAME, (*COLUMNS, "split") if own_split else COLUMNS)
        actors = [int(number(row, "actor", NAME, low=1, high=10_000)) for row in rows]
        splits = _table_splits(rows, actors) if own_split else _actor_splits(actors, cfg)
        need_splits(splits, NAME)
        clips = tuple(_clip(row, split, actor) for row, split, actor in zip(rows, splits, actors, strict=True))
        ids = [clip.id for clip in clips]
        audio, audio_recipe, containers = _audio(folder, ids, cfg, cache)
        vision, vision_recipe = _vision(folder, ids)
        used = [folder / TABLE, *containers, *([folder / VECTORS] if vision is not None else [])]
        given = (("audio", audio, audio_recipe), ("vision", vision, vision_recipe))
        if audio is None and vision is None:
            raise DataError(
                f"{NAME}: {folder} holds neither sound files of the clips (loose or in *.tar) nor {VECTORS}; add them."
            )
        return RawCorpus(
            facts=_facts(splits, own_split=own_split),
            clips=clips,
            streams={modality: stream for modality, stream, _ in given if stream is not None},  # type: ignore[misc]
            recipes={modality: recipe for modality, stream, recipe in given if stream is not None},  # type: ignore[misc]
            source={
                "split": "table" if own_split else {"valid": list(cfg.valid_actors), "test": list(cfg.test_actors)},
                "files": {path.name: sha256(path) for path in used},
            },
        )


def _table_splits(rows: Sequence[Row], actors: Sequence[int]) -> list[str]:
    splits = [known_split(row, "split", NAME) for row in rows]
    found: dict[int, set[str]] = {}
    for actor, split in zip(actors, splits, strict=True):
        found.setdefault(actor, set()).add(split)
    shared = sorted(actor for actor, names in found.items() if len(names) > 1)
    if shared:
        raise DataError(
            f"{NAME}: {TABLE} puts clips of actors {shared} into several splits; splits must not share an actor."
        )
    return splits


def _actor_splits(actors: Sequence[int], cfg: RavdessConfig) -> list[str]:
    unknown = sorted({*cfg.valid_actors, *cfg.test_actors} - set(actors))
    if unknown:
        raise DataError(
            f"{NAME}: valid_actors and test_actors name {unknown}; {TABLE} has the actors {sorted(set(actors))}."
        )
    part = {**dict.fromkeys(cfg.valid_actors, "valid"), **dict.fromkeys(cfg.test_actors, "test")}
    return [part.get(actor, "train") for actor in actors]


def _clip(row: Row, split: str, actor: int) -> Clip:
    label = number(row, "emotion_id", NAME, low=0, high=len(EMOTIONS) - 1)
    if EMOTIONS[int(label)] != row["emotion"] or label != int(label):
        raise DataError(
            f"{NAME}: clip {row['id']} has the emotion '{row['emotion']}' and the emotion_id {row['emotion_id']}; "
            f"expected the ids 0 to {len(EMOTIONS) - 1} for {', '.join(EMOTIONS)}. Correct the table."
        )
    notes = {name: row[name] for name in ("intensity", "repetition", "sex") if row.get(name)}
    return Clip(
        id=row["id"], split=split, text=row["text"].strip(), label=label, group=f"actor-{actor:02d}", notes=notes
    )


def _audio(
    folder: Path, ids: Sequence[str], cfg: RavdessConfig, cache: Path
) -> tuple[Ragged | None, FeatureRecipe | None, list[Path]]:
    """Frame features of the clips, their recipe, and the archives they came from."""
    found = _sound_files(folder)
    rows = np.array([row for row, name in enumerate(ids) if name in found], dtype=np.int64)
    if not len(rows):
        return None, None, []
    if len(rows) < len(ids):
        log.warning(
            "%s: %d of %d clips have no sound file; their audio is missing", NAME, len(ids) - len(rows), len(ids)
        )
    extractor = EXTRACTORS["librosa_33"](cfg.audio)
    files = [found[ids[row]] for row in rows]
    part = extractor.extract(files, cache, workers=cfg.workers, progress=_log_progress)
    lengths = np.zeros(len(ids), dtype=np.int64)
    lengths[rows] = part.lengths
    stream = Ragged(part.values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return stream, extractor.recipe(), sorted({file.path for file in files if file.size is not None})


def _sound_files(folder: Path) -> dict[str, MediaFile]:
    """Clip id -> where its sound is: in the archives of ``folder``, or loose anywhere below it (which wins)."""
    found: dict[str, MediaFile] = {}
    for path in sorted(folder.glob("*.tar")):
        try:
            with tarfile.open(path, "r:") as archive:
                members = [member for member in archive.getmembers() if member.isfile()]
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{NAME}: {path} is no whole tar archive ({error}); get it again.") from error
        sounds = [member for member in members if Path(member.name).suffix.lower() in (".flac", ".wav")]
        found.update({Path(m.name).stem: MediaFile(path, m.offset_data, m.size) for m in sounds})
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".flac", ".wav"):
            found[path.stem] = MediaFile(path)
    return found


def _vision(folder: Path, ids: Sequence[str]) -> tuple[Ragged | None, FeatureRecipe | None]:
    """Action units as one step per clip, with their names."""
    if not (folder / VECTORS).is_file():
        log.warning("%s: %s not found in %s; vision is missing", NAME, VECTORS, folder)
        return None, None
    arrays = read_vectors(folder / VECTORS, NAME, ("id", "vision_au35", "au_names"))
    stream = one_step(ids, arrays["id"], arrays["vision_au35"], corpus=NAME, what="vision_au35")
    names = tuple(str(name) for name in arrays["au_names"])
    if len(names) != stream.width:
        raise DataError(
            f"{NAME}: {VECTORS} names {len(names)} action units and has {stream.width} columns; get it again."
        )
    return stream, FeatureRecipe(
        name="openface_au35", version="1", width=stream.width, channels=names, settings={"per": "clip"}
    )


def _facts(splits: Sequence[str], *, own_split: bool) -> CorpusFacts:
    """The known facts; without sizes for another choice of actors."""
    found = {name: splits.count(name) for name in FACTS.size}
    return FACTS if own_split and found == FACTS.size else replace(FACTS, size={})


def _log_progress(done: int, total: int) -> None:
    if done % max(1, total // 10) == 0 or done == total:
        log.info("%s: audio features of %d of %d clips", NAME, done, total)
