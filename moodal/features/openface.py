"""OpenFace's tables of a face to our streams: action units, head pose and gaze, by name, with times.

OpenFace (Baltrusaitis et al., FG 2018) writes one CSV file a video: a row for each frame and face, its columns named in the
first line, with a space after each comma in some versions. Only the numbers are read; its licence is for research. The
extractor ``openface`` takes the table that lies beside a clip under the clip's name (clip.mp4, clip.csv).
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import DataError, check, did_you_mean
from moodal.core.spec import Modality
from moodal.data.corpus import FeatureRecipe
from moodal.features.container import MediaError
from moodal.features.face import FaceTrack

log = logging.getLogger(__name__)
#: Group -> which columns belong to it.
GROUPS = {
    "units": re.compile(r"AU\d\d_[rc]"),
    "pose": re.compile(r"pose_[RT][xyz]"),
    "gaze": re.compile(r"gaze_angle_[xy]"),
}
#: The channels of each group that OpenFace 2 writes, in its order.
CHANNELS = {
    "units": (
        *(f"AU{n:02}_r" for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)),
        *(f"AU{n:02}_c" for n in (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)),
    ),
    "pose": tuple(f"pose_{kind}{axis}" for kind in "TR" for axis in "xyz"),
    "gaze": ("gaze_angle_x", "gaze_angle_y"),
}
#: Rows above which a file is no table of one clip: ten hours at 60 frames a second.
MOST_ROWS = 10 * 3600 * 60
_EXPECTED = "expected the CSV file that OpenFace's FeatureExtraction writes"


@dataclass(frozen=True)
class _Table:
    """The columns needed: ``face`` (R,) whose, ``time`` (R,) seconds, ``trust`` (R,) 0 where tracking failed, ``values``."""

    face: np.ndarray
    time: np.ndarray
    trust: np.ndarray
    values: np.ndarray


def read_openface(
    path: Path,
    *,
    groups: Sequence[str] = ("units", "pose", "gaze"),
    least: float = 0.5,
    rate: float | None = None,
) -> tuple[np.ndarray, np.ndarray, FeatureRecipe]:
    """One OpenFace table -> (T, D) float32 values, (T,) seconds and the recipe that names the channels.

    ``groups``: of ``GROUPS``. ``least``: frames that OpenFace is less sure of, failed at, or gave no numbers for are left
    out, so T is 0 where there is no face. ``rate``: frames a second, for tables without times. Of several
    faces the one that is surest over the most frames is taken. Raises DataError with a sentence for a file that is not
    what it should be.
    """
    _check_chosen(groups, least)
    check(rate is None or rate > 0, f"rate is {rate}; give frames a second.")
    names, table = _of_one_face(path, groups, rate)
    good = _good(table, least)
    if not good.all():
        lost = int((~good).sum())
        log.warning("%s: %d of %d frames have no face that OpenFace is sure of; left out", path, lost, len(good))
    settings = {"groups": list(groups), "least": float(least)}
    recipe = FeatureRecipe(name="openface", version="1", width=len(names), channels=names, settings=settings)
    return table.values[good].astype(np.float32), table.time[good], recipe


@dataclass(frozen=True, kw_only=True)
class OpenFaceSettings:
    """Settings of ``openface``. ``hop``: seconds between steps; of each the nearest row is taken. ``groups``: of ``GROUPS``.

    ``least``: confidence, 0 to 1, below which a row has no face.
    """

    hop: float = 0.1
    groups: tuple[str, ...] = ("units", "pose", "gaze")
    least: float = 0.5

    def __post_init__(self) -> None:
        check(self.hop > 0, f"hop is {self.hop}; give the seconds between two steps.")
        check(bool(self.groups), f"groups is empty; give one or more of {', '.join(GROUPS)}.")
        _check_chosen(self.groups, self.least)


class OpenFace:
    """The table beside a clip -> the channels of OpenFace 2, a step every ``hop`` seconds. No picture is looked at."""

    name: ClassVar[str] = "openface"
    version: ClassVar[str] = "2"
    modality: ClassVar[Modality] = "vision"
    Config: ClassVar[type[Any]] = OpenFaceSettings

    def __init__(self, cfg: OpenFaceSettings | None = None) -> None:
        self.cfg = OpenFaceSettings() if cfg is None else cfg

    def recipe(self) -> FeatureRecipe:
        """Name, version, channels and settings, as the manifest keeps them."""
        names = tuple(name for group in self.cfg.groups for name in CHANNELS[group])
        return FeatureRecipe(
            name=self.name, version=self.version, width=len(names), channels=names, settings=asdict(self.cfg)
        )

    def beside(self, path: Path, start: float, end: float) -> FaceTrack:
        """What the table beside ``path`` says from ``start`` to ``end`` seconds. Raises MediaError where it cannot be used."""
        file = path.with_suffix(".csv")
        if not file.is_file():
            raise MediaError(f"{file.name}, OpenFace's table of {path.name}, is not there; run OpenFace on the clip.")
        try:
            found, table = _of_one_face(file, self.cfg.groups, None)
        except DataError as fault:
            raise MediaError(str(fault)) from fault
        wanted = self.recipe().channels
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise MediaError(f"{file.name} has no column {missing[0]}; run OpenFace 2 with -aus -pose -gaze.")
        steps = start + self.cfg.hop * np.arange(max(0, math.ceil((end - start) / self.cfg.hop - 1e-9)))
        place = _nearest(table.time, steps)
        there = _good(table, self.cfg.least)[place] & (np.abs(table.time[place] - steps) <= self.cfg.hop / 2 + 1e-9)
        values = table.values[place][:, [found.index(name) for name in wanted]]
        values = np.where(there[:, None], values, 0.0).astype(np.float32)
        trust = np.where(there, table.trust[place], 0.0).astype(np.float32)
        lost = int((~there).sum())
        note = f"OpenFace is sure of no face in {lost} of {len(steps)} steps" if lost else ""
        return FaceTrack(values, steps - start, trust, there.astype(np.int64), note)


def _check_chosen(groups: Sequence[str], least: float) -> None:
    for group in groups:
        check(group in GROUPS, f"there is no group '{group}'; known: {', '.join(GROUPS)}{did_you_mean(group, GROUPS)}.")
    check(0 <= least <= 1, f"least is {least}; give a confidence from 0 to 1.")


def _of_one_face(path: Path, groups: Sequence[str], rate: float | None) -> tuple[tuple[str, ...], _Table]:
    """The channels, and the rows of one face, whose times rise."""
    names, table = _read(path, groups, rate)
    kept = _one_face(path, table)
    table = _Table(table.face[kept], table.time[kept], table.trust[kept], table.values[kept])
    if np.any(np.diff(table.time) <= 0):
        raise DataError(
            f"{path}: the times do not rise from row to row; {_EXPECTED}, or give rate to count frames instead."
        )
    return names, table


def _good(table: _Table, least: float) -> np.ndarray:
    """(R,) rows with a face that OpenFace is sure of, and with numbers."""
    good: np.ndarray = (table.trust >= max(least, 1e-9)) & np.isfinite(table.values).all(axis=1)
    return good


def _nearest(times: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(S,) the place in the rising ``times`` (R,) that is nearest to each of ``steps``."""
    after = np.clip(np.searchsorted(times, steps), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(steps - times[before] <= times[after] - steps, before, after)


def _read(path: Path, groups: Sequence[str], rate: float | None) -> tuple[tuple[str, ...], _Table]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (cells for cells in csv.reader(file) if cells)
            header = [name.strip() for name in next(lines, [])]
            names, places = _columns(path, header, groups, rate)
            rows = list(itertools.islice(_rows(path, lines, header, places), MOST_ROWS + 1))
    except OSError as fault:
        raise DataError(f"{path} cannot be read ({fault.strerror}); {_EXPECTED}.") from fault
    except (UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path} is no table ({fault}); {_EXPECTED}.") from fault
    if not rows:
        raise DataError(f"{path} has no rows below its names; {_EXPECTED}, so extract the clip again.")
    if len(rows) > MOST_ROWS:
        raise DataError(f"{path} has more than {MOST_ROWS} rows; cut it into clips.")
    numbers = np.array(rows, dtype=np.float64)
    face, time, success, trust = numbers[:, :4].T
    time = (time - 1) / rate if rate is not None else time  # OpenFace counts frames from 1
    trust = np.where((success > 0) & np.isfinite(trust), trust, 0.0)
    usable = np.isfinite(time)
    if not usable.all():
        raise DataError(f"{path}: row {int(np.argmin(usable)) + 2} has no time; {_EXPECTED}.")
    return names, _Table(face, time, trust, numbers[:, 4:])


def _columns(
    path: Path, header: Sequence[str], groups: Sequence[str], rate: float | None
) -> tuple[tuple[str, ...], list[int | None]]:
    """The channels, and where (face, time, success, confidence, *channels) are; None for what the table may lack."""
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} more than once; {_EXPECTED}.")
    time = "timestamp" if rate is None else "frame"
    for name in (time, "confidence"):
        if name not in header:
            advice = (
                "; give rate, frames a second, to go by its frame numbers" if "frame" in header and rate is None else ""
            )
            raise DataError(f"{path} has no column {name}; {_EXPECTED}{advice}.")
    names = tuple(name for name in header if any(GROUPS[group].fullmatch(name) for group in groups))
    if not names:
        raise DataError(f"{path} has no columns of {', '.join(groups)}; run OpenFace with -aus -pose -gaze.")
    optional = (header.index(name) if name in header else None for name in ("face_id", time, "success"))
    return names, [*optional, header.index("confidence"), *(header.index(name) for name in names)]


def _rows(
    path: Path, lines: Iterator[list[str]], header: Sequence[str], places: Sequence[int | None]
) -> Iterator[list[float]]:
    """The numbers at ``places`` of each line. A table without face_id has one face, and one without success no failure."""
    missing = (0.0, math.nan, 1.0)
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DataError(
                f"{path}: row {number} has {len(cells)} cells, and there are {len(header)} names; the file is cut or "
                "damaged, extract the clip again."
            )
        try:
            yield [missing[slot] if place is None else float(cells[place]) for slot, place in enumerate(places)]
        except ValueError as fault:
            raise DataError(f"{path}: row {number} holds what is no number ({fault}); {_EXPECTED}.") from fault


def _one_face(path: Path, table: _Table) -> np.ndarray:
    """(R,) the rows of the face that is surest over the most frames."""
    faces = np.unique(table.face)
    if len(faces) == 1:
        return np.ones(len(table.face), dtype=bool)
    sure = [float(table.trust[table.face == face].sum()) for face in faces]
    chosen = faces[int(np.argmax(sure))]
    log.warning("%s: %d faces; the surest, number %g, is taken", path, len(faces), chosen)
    return table.face == chosen
