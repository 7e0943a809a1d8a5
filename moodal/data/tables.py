"""Reading the small files of a corpus (tables of clips, vectors by clip) with a sentence for each fault."""

from __future__ import annotations

import csv
import logging
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moodal.core.errors import DataError
from moodal.data.corpus import SPLITS
from moodal.data.ragged import Ragged

log = logging.getLogger(__name__)
Row = Mapping[str, str]


def need_folder(root: Path | None, corpus: str, files: Sequence[str]) -> Path:
    """``root`` if it is a folder that holds ``files``; else DataError naming what is missing."""
    expected = ", ".join(files)
    if root is None:
        raise DataError(f"{corpus}: no folder given; set data.root to the folder that holds {expected}.")
    if not root.is_dir():
        raise DataError(f"{corpus}: {root} is not a folder; set data.root to the folder that holds {expected}.")
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        raise DataError(
            f"{corpus}: {', '.join(missing)} not found in {root}; put it there, or set data.root to the right folder."
        )
    return root


def read_table(path: Path, corpus: str, columns: Sequence[str]) -> list[Row]:
    """The rows of a CSV file, which must have ``columns``, one row or more, and an ``id`` for each of its own."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[Row] = list(reader)
            found = reader.fieldnames or ()
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{corpus}: {path} is no readable CSV file ({error}); get it again.") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataError(
            f"{corpus}: {path.name} has no column {', '.join(missing)}; its columns are {', '.join(found) or 'none'}."
        )
    if not rows:
        raise DataError(f"{corpus}: {path.name} has no rows; get it again.")
    short = next((n for n, row in enumerate(rows, start=2) if any(row[column] is None for column in columns)), None)
    if short is not None:
        raise DataError(
            f"{corpus}: line {short} of {path.name} has too few columns, so it is cut short or damaged; get it again."
        )
    repeated = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if repeated:
        raise DataError(
            f"{corpus}: {path.name} names {len(repeated)} id(s) twice, such as {repeated[0]}; "
            "each clip needs an id of its own."
        )
    return rows


def number(row: Row, column: str, corpus: str, *, low: float, high: float) -> float:
    """A finite number of ``column`` within [low, high]."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # also false for NaN
        raise DataError(
            f"{corpus}: clip {row['id']} has the {column} '{row[column]}'; "
            f"expected a number from {low:g} to {high:g}. Correct the table."
        )
    return value


def known_split(row: Row, column: str, corpus: str, allowed: Sequence[str] = SPLITS) -> str:
    """The value of ``column``, one of ``allowed``."""
    if row[column] not in allowed:
        raise DataError(
            f"{corpus}: clip {row['id']} has the {column} '{row[column]}'; "
            f"expected {', '.join(allowed)}. Correct the table."
        )
    return row[column]


def need_splits(splits: Sequence[str], corpus: str) -> None:
    """Raise DataError when train, valid or test is empty."""
    empty = [name for name in SPLITS if name not in set(splits)]
    if empty:
        raise DataError(f"{corpus}: the split {' and '.join(empty)} is empty; each of {', '.join(SPLITS)} needs clips.")


def read_vectors(path: Path, corpus: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays ``names`` of an NPZ file, none of which may hold Python objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise DataError(
                    f"{corpus}: {path.name} has no array {', '.join(missing)}; it has {', '.join(archive.files)}."
                )
            return {name: archive[name] for name in names}
    except DataError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{corpus}: {path} is no readable NPZ file of plain arrays ({error}); get it again.") from error


def one_step(ids: Sequence[str], names: np.ndarray, vectors: np.ndarray, *, corpus: str, what: str) -> Ragged:
    """(n, D) vectors of the clips ``names`` -> one step for each of ``ids``; none where absent or not finite."""
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise DataError(
            f"{corpus}: {what} has the shape {vectors.shape}; "
            f"expected one vector for each of {len(names)} ids. Get it again."
        )
    place = {str(name): row for row, name in enumerate(names)}
    row = np.array([place.get(name, -1) for name in ids], dtype=np.int64)
    finite = np.isfinite(vectors).all(axis=1)
    present = row >= 0
    usable = present & finite[row]
    if not present.all():
        log.warning("%s: %d of %d clips have no %s; it is missing there", corpus, int((~present).sum()), len(ids), what)
    if (present & ~usable).any():
        log.warning(
            "%s: %s of %d clips holds NaN or inf; it is missing there", corpus, what, int((present & ~usable).sum())
        )
    if not usable.any():
        raise DataError(
            f"{corpus}: {what} has no usable vector for any of the {len(ids)} clips; its ids do not fit the table."
        )
    offsets = np.concatenate([[0], np.cumsum(usable)]).astype(np.int64)
    return Ragged(vectors[row[usable]].astype(np.float32), offsets)
