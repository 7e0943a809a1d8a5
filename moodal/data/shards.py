"""A cache on disk of sequences by key: append-only shards, written aside and renamed, read memory-mapped.

Layout: ``<folder>/<shard>/{values.npy, offsets.npy, keys.npy, checksums.json}``. Any number of processes may add
shards at once: each writes under its own name, and a key found twice is read from the first shard.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moodal.core.files import folder_aside
from moodal.data.ragged import Ragged

_FILES = ("values.npy", "offsets.npy", "keys.npy")
_BLOCK = 1 << 24
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """Rows of a :class:`Ragged` and the key of each."""

    rows: Ragged
    keys: tuple[bytes, ...]


@dataclass(frozen=True)
class Where:
    """Where keys are: ``shard`` and ``row`` are (n,) int64, -1 where a key is not stored."""

    shard: np.ndarray
    row: np.ndarray


class Shards:
    """All whole shards below ``folder``. A damaged one is left out with a warning and removed, so it is remade."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = [shard for path in sorted(folder.glob("shard-*")) if (shard := _open(path)) is not None]

    def find(self, keys: Sequence[bytes]) -> Where:
        """The place of each key."""
        places: dict[bytes, tuple[int, int]] = {}
        for number, shard in enumerate(self.shards):
            for row, key in enumerate(shard.keys):
                places.setdefault(key, (number, row))
        found = np.array([places.get(key, (-1, -1)) for key in keys], dtype=np.int64).reshape(-1, 2)
        return Where(found[:, 0], found[:, 1])

    def gather(self, where: Where, width: int, dtype: np.dtype) -> Ragged:
        """The rows at ``where`` (all found), in that order; a view of the file where one shard holds them in a run."""
        if len(np.unique(where.shard)) == 1:
            return self.shards[int(where.shard[0])].rows.select(where.row)
        lengths = np.zeros(len(where.row), dtype=np.int64)
        chosen = {int(number): np.flatnonzero(where.shard == number) for number in np.unique(where.shard)}
        for number, rows in chosen.items():
            lengths[rows] = self.shards[number].rows.lengths[where.row[rows]]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        values = np.empty((int(offsets[-1]), width), dtype=dtype)
        for number, rows in chosen.items():
            part = self.shards[number].rows.select(where.row[rows])
            within = np.arange(len(part.values)) - np.repeat(part.offsets[:-1], part.lengths)
            values[np.repeat(offsets[rows], part.lengths) + within] = part.values
        return Ragged(values, offsets)


@contextmanager
def new_shard(
    folder: Path, keys: Sequence[bytes], lengths: np.ndarray, *, width: int, dtype: np.dtype
) -> Iterator[Ragged]:
    """Give a writable, file-backed :class:`Ragged` to fill; on leaving it becomes a shard, on an error it vanishes.

    Raises MoodalError when the disk is full or the folder cannot be written.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with folder_aside(folder / f"shard-{uuid.uuid4().hex}") as aside:
        np.save(aside / "keys.npy", np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1))
        np.save(aside / "offsets.npy", offsets)
        # Written, not left sparse: a full disk must be an error here, not a signal when the map is flushed.
        np.save(aside / "values.npy", np.zeros((int(offsets[-1]), width), dtype=dtype))
        values = np.load(aside / "values.npy", mmap_mode="r+") if offsets[-1] else np.zeros((0, width), dtype=dtype)
        yield Ragged(values, offsets)
        if isinstance(values, np.memmap):
            values.flush()
        (aside / "checksums.json").write_text(json.dumps({file: _checksum(aside / file) for file in _FILES}))


def _open(path: Path) -> Shard | None:
    try:
        expected: Mapping[str, int] = json.loads((path / "checksums.json").read_text(encoding="utf-8"))
        if any(_checksum(path / file) != expected[file] for file in _FILES):
            raise ValueError("checksums differ")
        offsets, keys = np.load(path / "offsets.npy"), np.load(path / "keys.npy")
        # An empty file cannot be mapped.
        values = np.load(path / "values.npy", mmap_mode="r" if offsets[-1] else None)
        return Shard(Ragged(values, offsets), tuple(key.tobytes() for key in keys))
    except FileNotFoundError:
        if not path.exists():  # removed by another process since it was listed
            return None
        reason: Exception | str = "a file is missing"
    except (OSError, ValueError, KeyError) as error:
        reason = error
    log.warning("cache %s is damaged (%s); it is removed and its content made again", path, reason)
    shutil.rmtree(path, ignore_errors=True)
    return None


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total
