"""RegDB: people seen by a visible and a thermal camera side by side, ten pictures of each.

Source   Nguyen et al., "Person Recognition System Based on a Combination of Body Images from Visible Light and Thermal
         Cameras", Sensors 17(3), 2017; the ten splits: Ye et al. 2018.
         Files expected in the folder: idx/train_visible_<k>.txt, train_thermal_<k>.txt, test_visible_<k>.txt and
         test_thermal_<k>.txt for k = 1 ... 10, each line a picture's place below the folder and its person's number.
Splits   206 persons to train and 206 to test, drawn ten times (``reader.trial``); published numbers are means over the
         ten, so train ten runs. There is no published validation: the last ``valid_persons`` of the training persons are
         held out, or trained on too with ``reader.train_on_valid``. The released code chose the epoch on test, which is
         never done here, and trained on the splits 2 to 11, of which the last does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from moodal.core.errors import DataError, check
from moodal.core.spec import Identification
from moodal.data.corpus import CorpusFacts, RawCorpus, ReaderConfig
from moodal.data.pictures import People, Picture, PictureConfig, read_lines, read_pictures
from moodal.data.tables import need_folder

NAME = "regdb"
#: camera number by the word in the names of the lists.
CAMERAS = {"visible": 1, "thermal": 2}
TRIALS = 10
#: persons of test are numbered from 0 again in their lists.
TEST_OFFSET = 1000

FACTS = CorpusFacts(
    name=NAME,
    title="RegDB: visible and thermal cameras",
    language="",
    task=Identification(186),
    protocol="regdb",
    source="Nguyen et al. 2017, Sensors 17(3)",
    licence="by agreement with its authors, for research",
    widths={"vision": 3},
)


@dataclass(frozen=True, kw_only=True)
class RegDBConfig(PictureConfig):
    """``trial``: which of the ten splits; ``valid_persons``: how many training persons are for validation."""

    trial: int = 1
    valid_persons: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.trial <= TRIALS, f"trial is {self.trial}; the splits are numbered from 1 to {TRIALS}.")
        check(
            self.valid_persons >= 1,
            f"valid_persons is {self.valid_persons}; at least one is needed to choose an epoch.",
        )


class RegDB:
    """The reader of RegDB in its published layout."""

    Config: ClassVar[type[ReaderConfig]] = RegDBConfig
    facts: ClassVar[CorpusFacts] = FACTS

    @staticmethod
    def read(root: Path | None, cfg: Any, cache: Path) -> RawCorpus:
        """Read the folder ``root``; decoded pictures are kept below ``cache``.

        Raises ``DataError`` with a sentence for whatever is missing or wrong.
        """
        folder = need_folder(root, NAME, ())
        trained, tested = (_list(folder, kind, cfg.trial) for kind in ("train", "test"))
        people = People(tuple(_split(trained, tested, cfg)))
        files = [picture.path for picture in people.pictures]
        vision, recipe, checksum = read_pictures(files, cfg, cache, corpus=NAME)
        return RawCorpus(
            facts=replace(FACTS, task=Identification(people.trained)),
            clips=people.clips(folder),
            streams={"vision": vision},
            recipes={"vision": recipe},
            columns=people.columns(),
            source={"pictures": checksum, "trial": cfg.trial, "train_on_valid": cfg.train_on_valid},
        )


def _list(folder: Path, kind: str, trial: int) -> list[Picture]:
    """The pictures of one split's two lists."""
    found = []
    for word, camera in CAMERAS.items():
        path = folder / "idx" / f"{kind}_{word}_{trial}.txt"
        for number, line in enumerate(read_lines(path, NAME), start=1):
            place, _, person = line.rpartition(" ")
            if not place or not person.isdigit() or Path(place).is_absolute() or ".." in Path(place).parts:
                raise DataError(
                    f"{NAME}: line {number} of {path} is '{line}'; a picture's place below the folder and a person's "
                    "number were expected."
                )
            who = int(person) + (TEST_OFFSET if kind == "test" else 0)
            found.append(
                Picture(path=folder / place, split=kind, person=who, camera=camera, infrared=word == "thermal")
            )
    return found


def _split(trained: list[Picture], tested: list[Picture], cfg: RegDBConfig) -> list[Picture]:
    """Pictures by split: those to train on, those held out of them, those to test."""
    persons = sorted({picture.person for picture in trained})
    if len(persons) <= cfg.valid_persons:
        raise DataError(
            f"{NAME}: the split has {len(persons)} training persons and reader.valid_persons is {cfg.valid_persons}; "
            "give a smaller number."
        )
    held = set(persons[-cfg.valid_persons :])
    valid = [replace(picture, split="valid") for picture in trained if picture.person in held]
    return [p for p in trained if cfg.train_on_valid or p.person not in held] + valid + tested
