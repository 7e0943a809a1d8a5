"""SYSU-MM01: people seen by four visible and two infrared cameras of a campus.

Source   Wu et al., "RGB-Infrared Cross-Modality Person Re-Identification", ICCV 2017.
         Files expected in the folder: cam1 ... cam6/<person, four digits>/<number>.jpg; exp/train_id.txt, val_id.txt and
         test_id.txt (persons, separated by commas), or the same as .mat; exp/rand_perm_cam.mat, the permutations of the
         ten published trials, from the released evaluation code. Without it ten of our own are drawn, and data.json
         says so.
Splits   train, valid and test are the published 296, 99 and 96 persons. Published results train on the first two
         (``reader.train_on_valid``) and chose the epoch on test, which is never done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import DataError, check
from moodal.core.files import sha256
from moodal.core.spec import Identification
from moodal.data.corpus import CorpusFacts, RawCorpus, ReaderConfig
from moodal.data.pictures import People, Picture, PictureConfig, blocks, drawn_places, read_lines, read_pictures
from moodal.data.tables import need_folder

NAME = "sysu_mm01"
CAMERAS, INFRARED = range(1, 7), (3, 6)
LISTS = {"train": "train_id", "valid": "val_id", "test": "test_id"}
PERMUTATIONS = Path("exp") / "rand_perm_cam.mat"
TRIALS = 10

FACTS = CorpusFacts(
    name=NAME,
    title="SYSU-MM01: visible and infrared cameras",
    language="",
    task=Identification(296),
    protocol="sysu",
    source="Wu et al. 2017, ICCV",
    licence="by agreement with its authors, for research",
    widths={"vision": 3},
)


@dataclass(frozen=True, kw_only=True)
class SysuConfig(PictureConfig):
    """``valid_per_camera``: pictures of a person and camera in valid, evenly spaced (null: all); test has all."""

    valid_per_camera: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.valid_per_camera is None or self.valid_per_camera >= 1
        check(known, f"valid_per_camera is {self.valid_per_camera}; it must be 1 or more, or null.")


class SysuMm01:
    """The reader of SYSU-MM01 in its published layout."""

    Config: ClassVar[type[ReaderConfig]] = SysuConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:
        """Read the folder ``root``; decoded pictures are kept below ``cache``.

        Raises ``DataError`` with a sentence for whatever is missing or wrong.
        """
        folder = need_folder(root, NAME, ())
        lists = {split: _persons(folder, name) for split, name in LISTS.items()}
        _verify(lists)
        people = People(tuple(_pictures(folder, lists, cfg)))
        files = [picture.path for picture in people.pictures]
        vision, recipe, checksum = read_pictures(files, cfg, cache, corpus=NAME)
        columns = people.columns()
        places, drawn = _places(folder, people, columns["camera"])
        return RawCorpus(
            facts=replace(FACTS, task=Identification(people.trained)),
            clips=people.clips(folder),
            streams={"vision": vision},
            recipes={"vision": recipe},
            columns={**columns, "place": places},
            source={"pictures": checksum, "permutations": drawn, "train_on_valid": cfg.train_on_valid},
        )


def _persons(folder: Path, name: str) -> list[int]:
    """The persons of a list, from its text file, or from its .mat file where there is no other."""
    text, matrix = folder / "exp" / f"{name}.txt", folder / "exp" / f"{name}.mat"
    if text.is_file() or not matrix.is_file():
        words = [word for line in read_lines(text, NAME) for word in line.split(",")]
    else:
        words = [str(number) for number in _matrix(matrix, "id").ravel()]
    try:
        return sorted({int(word) for word in words if word.strip()})
    except ValueError as error:
        raise DataError(
            f"{NAME}: {text} holds {error}; persons as numbers separated by commas were expected."
        ) from error


def _matrix(path: Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file, which is read as plain arrays."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return np.asarray(loadmat(path)[name])
    except (MatReadError, KeyError, ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{NAME}: {path} has no readable '{name}' ({type(error).__name__}); get it again.") from error


def _verify(lists: dict[str, list[int]]) -> None:
    for one, two in itertools.combinations(lists, 2):
        shared = sorted(set(lists[one]) & set(lists[two]))
        if shared:
            raise DataError(f"{NAME}: persons {shared[:5]} are in {LISTS[one]} and {LISTS[two]}; get the lists again.")


def _pictures(folder: Path, lists: dict[str, list[int]], cfg: SysuConfig) -> Iterable[Picture]:
    """The pictures of each split by person, camera and number; those of one split lie together in the array."""
    trained = sorted([*lists["train"], *lists["valid"]]) if cfg.train_on_valid else lists["train"]
    for split, persons in {**lists, "train": trained}.items():
        found = False
        for person, camera in itertools.product(persons, CAMERAS):
            files = sorted((folder / f"cam{camera}" / f"{person:04d}").glob("*.jpg"))
            if split == "valid" and cfg.valid_per_camera is not None and len(files) > cfg.valid_per_camera:
                files = [files[i] for i in np.linspace(0, len(files) - 1, cfg.valid_per_camera).round().astype(int)]
            for file in files:
                found = True
                yield Picture(path=file, split=split, person=person, camera=camera, infrared=camera in INFRARED)
        if not found:
            raise DataError(
                f"{NAME}: {folder} has no picture of the persons of {LISTS[split]}; expected cam1 ... cam6, each with a "
                "folder of .jpg files for each person (four digits)."
            )


def _places(folder: Path, people: People, camera: np.ndarray) -> tuple[np.ndarray, str]:
    """(N, T) places in the permutations of the trials, and where they come from; published ones exist for test only."""
    # Blocks must not cross splits: with train_on_valid a picture is in two of them.
    split = np.array([tuple(LISTS).index(p.split) for p in people.pictures])
    person = np.array([p.person for p in people.pictures])
    places = drawn_places(person + 10_000 * split, camera, trials=TRIALS, corpus=NAME)
    path = folder / PERMUTATIONS
    if not path.is_file():
        return places, "drawn by moodal"
    published = _matrix(path, "rand_perm_cam")
    tested = np.flatnonzero(split == tuple(LISTS).index("test"))
    for (who, where), rows in blocks(person[tested], camera[tested]):
        try:
            order = np.asarray(published[where - 1, 0][who - 1, 0], np.int64) - 1
        except IndexError:
            order = np.zeros((0, 0), np.int64)
        if not (len(order) and np.array_equal(np.sort(order, axis=1), np.tile(np.arange(len(rows)), (len(order), 1)))):
            raise DataError(
                f"{NAME}: {path.name} has no permutation of the {len(rows)} pictures of person {who} in cam{where}; "
                "a picture or the file is damaged, get them again (or remove the file to draw other trials)."
            )
        places[tested[rows]] = order.argsort(axis=1)[:TRIALS].T
    return places, f"sha256:{sha256(path)}"
