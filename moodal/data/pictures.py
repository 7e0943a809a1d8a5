"""Pictures of a corpus: decoded once into one array of bytes that stays on disk, and what re-identification knows of them.

Shapes  N pictures, H x W pixels, T trials. Nothing is ever held in memory as floats: a batch of bytes is gathered from the
        memory-mapped array, and the method standardises it on its device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from moodal.core.errors import DataError, MissingExtra, check
from moodal.core.files import aside, read_json, write_json
from moodal.core.random import derived_seed
from moodal.data.corpus import SPLITS, Clip, FeatureRecipe, ReaderConfig
from moodal.data.ragged import Ragged

#: changes when the same files give other bytes.
VERSION = "1"
#: pictures decoded at a time.
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class PictureConfig(ReaderConfig):
    """Size of the pictures, and who is for validation.

    ``train_on_valid``: the people of the validation split are trained on too, as published; its scores then say nothing
    about strangers, so give ``train.select=last``. ``workers``: threads that decode (0: one per core).
    """

    height: int = 256
    width: int = 128
    train_on_valid: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        check(min(self.height, self.width) >= 8, f"pictures are {self.height} x {self.width}; 8 x 8 is the least.")
        check(self.workers >= 0, f"workers is {self.workers}; give 0 for one per core, or a number of threads.")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of one person by one camera, for one split."""

    path: Path
    split: str
    person: int
    camera: int
    infrared: bool


@dataclass(frozen=True)
class People:
    """Persons as numbers: those of the training split first, so that they are the classes of a classifier."""

    pictures: tuple[Picture, ...]

    @cached_property
    def number(self) -> dict[int, int]:
        """Person -> number, by split and then in order."""
        known: dict[int, int] = {}
        for split in SPLITS:
            for person in sorted({p.person for p in self.pictures if p.split == split} - set(known)):
                known[person] = len(known)
        return known

    @property
    def trained(self) -> int:
        """How many persons the training split has."""
        return len({picture.person for picture in self.pictures if picture.split == "train"})

    def clips(self, root: Path) -> tuple[Clip, ...]:
        """A row for each picture, named by its place below ``root``; its group is its person."""
        return tuple(
            Clip(
                id=str(p.path.relative_to(root).with_suffix("")),
                split=p.split,
                text="",
                label=float(self.number[p.person]),
                group=f"person-{p.person}",
            )
            for p in self.pictures
        )

    def columns(self) -> dict[str, np.ndarray]:
        """(N,) the camera of each picture, and whether it is infrared (0 or 1)."""
        return {
            "camera": np.array([p.camera for p in self.pictures], np.int64),
            "infrared": np.array([p.infrared for p in self.pictures], np.int64),
        }


def read_pictures(
    files: Sequence[Path], cfg: PictureConfig, cache: Path, *, corpus: str
) -> tuple[Ragged, FeatureRecipe, str]:
    """The pictures as a stream of one step each, (N, 3, H, W) bytes on disk; its recipe; a checksum of all the files.

    They are decoded and resized (bilinear) once, and kept below ``cache`` under the files' names, sizes and times.
    Raises ``DataError`` naming a picture that is missing or cannot be decoded.
    """
    recipe = FeatureRecipe(
        name="pictures",
        version=VERSION,
        width=3,
        settings={"height": cfg.height, "width": cfg.width, "resize": "bilinear"},
    )
    key = hashlib.sha256(f"{VERSION} {cfg.height} {cfg.width}".encode())
    for file in files:
        try:
            stamp = file.stat()
        except OSError as error:
            raise DataError(
                f"{corpus}: {file} is named by the lists and is not there; get the pictures again."
            ) from error
        key.update(f"{file}\0{stamp.st_size}\0{stamp.st_mtime_ns}\0".encode())
    place = cache / "pictures" / f"{corpus}-{key.hexdigest()[:16]}.npy"
    facts = place.with_suffix(".json")
    if not facts.is_file() or not place.is_file():
        write_json(facts, {"sha256": _decode(files, cfg, place, corpus)})
    values = np.load(place, mmap_mode="r", allow_pickle=False)
    return Ragged(values, np.arange(len(files) + 1)), recipe, str(read_json(facts)["sha256"])


def _decode(files: Sequence[Path], cfg: PictureConfig, place: Path, corpus: str) -> str:
    """Write the array; the SHA-256 over the SHA-256s of the files in order."""
    total = hashlib.sha256()
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), 3, cfg.height, cfg.width)}
    with (
        aside(place) as temporary,
        temporary.open("wb") as out,
        ThreadPoolExecutor(cfg.workers or os.cpu_count()) as pool,
    ):
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, len(files), _BLOCK):
            for pixels, digest in pool.map(lambda file: _picture(file, cfg, corpus), files[start : start + _BLOCK]):
                out.write(pixels)
                total.update(digest)
    return total.hexdigest()


def _picture(file: Path, cfg: PictureConfig, corpus: str) -> tuple[bytes, bytes]:
    """The (3, H, W) bytes of one file, grey ones with three equal colours, and its SHA-256."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("pillow", "vision") from error
    try:
        with Image.open(file) as opened:
            resized = opened.convert("RGB").resize((cfg.width, cfg.height), Image.Resampling.BILINEAR)
        return np.asarray(resized).transpose(2, 0, 1).tobytes(), hashlib.sha256(file.read_bytes()).digest()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{corpus}: {file} cannot be decoded as a picture ({type(error).__name__}); get it again."
        ) from error


def drawn_places(person: np.ndarray, camera: np.ndarray, *, trials: int, corpus: str) -> np.ndarray:
    """(N, T) where a fixed random permutation of each trial puts a picture among those of its person and camera."""
    places = np.zeros((len(person), trials), np.int64)
    for name, rows in blocks(person, camera):
        draw = np.random.default_rng(derived_seed(0, corpus, "gallery", *name))
        places[rows] = np.argsort(draw.random((trials, len(rows))), axis=1).argsort(axis=1).T
    return places


def blocks(person: np.ndarray, camera: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """((person, camera), rows in order) of each block of pictures of one person by one camera."""
    order = np.lexsort((camera, person))
    pairs = np.column_stack([person, camera])[order]
    starts = np.flatnonzero(np.any(np.diff(pairs, axis=0, prepend=pairs[:1] - 1) != 0, axis=1))
    for start, rows in zip(starts, np.split(order, starts[1:])):
        yield (int(pairs[start, 0]), int(pairs[start, 1])), rows


def read_lines(path: Path, corpus: str) -> list[str]:
    """The lines of a text file that are not empty; ``DataError`` if it is missing or holds none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{corpus}: {path} cannot be read ({type(error).__name__}); it belongs to the data set, get it again."
        ) from error
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{corpus}: {path} is empty; it belongs to the data set, get it again.")
    return found
