"""What audio extractors share: reading sound files, one row of steps for each, in processes and with a cache."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import DataError, MissingExtra, MoodalError
from moodal.core.processes import end_with_parent
from moodal.core.spec import Modality
from moodal.data.corpus import FeatureRecipe
from moodal.data.extractors import MediaFile, Report
from moodal.data.ragged import Ragged
from moodal.data.shards import Shards, new_shard

log = logging.getLogger(__name__)
#: Files between two writes of the cache: what a killed extraction loses at most.
FILES_PER_SHARD = 256
#: Octaves above ``pitch_low`` that a voiced step has at least in channels called log_f0, so that 0 means unvoiced.
LOWEST_VOICED = 0.01


class AudioExtractor:
    """Base of the entries of ``EXTRACTORS`` that hear: mono sound at ``cfg.sample_rate`` -> (T, D) steps.

    A subclass gives ``name``, ``version``, ``Config``, ``channels`` and ``timed``. Every ``Config`` has ``sample_rate``
    and ``hop`` in samples, and ``Config(**recipe().settings)`` makes the same extractor again.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    modality: ClassVar[Modality] = "audio"
    Config: ClassVar[type[Any]]
    channels: ClassVar[tuple[str, ...]] = ()
    #: Whether ``extract`` may use several processes: not where each would hold a large model.
    several_processes: ClassVar[bool] = True

    def __init__(self, cfg: Any = None) -> None:
        self.cfg = self.Config() if cfg is None else cfg

    @property
    def width(self) -> int:
        """D, the numbers of a step."""
        return len(self.channels)

    def recipe(self) -> FeatureRecipe:
        """Name, version, channels and settings, as the manifest keeps them."""
        return FeatureRecipe(
            name=self.name,
            version=self.version,
            width=self.width,
            channels=self.channels,
            settings=asdict(self.cfg),
        )

    def timed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S,) float samples at the recipe's rate -> (T, D) float32 steps and the (T,) seconds of their middles.

        (0, D) for no sound.
        """
        raise NotImplementedError

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """(S,) float samples at the recipe's rate -> (T, D) float32; (0, D) for no sound."""
        return self.timed(wave)[0]

    def need_packages(self) -> None:
        """Raise MissingExtra where a package that this needs is absent; what is built in needs none."""

    def nothing(self) -> tuple[np.ndarray, np.ndarray]:
        """What ``timed`` gives where there is no sound."""
        return np.zeros((0, self.width), np.float32), np.zeros(0)

    def extract(
        self, files: Sequence[MediaFile], cache: Path, *, workers: int = 0, progress: Report | None = None
    ) -> Ragged:
        """A row of (T_i, D) for each file, kept below ``cache`` under recipe and content; empty where unreadable.

        ``workers``: processes of one thread each (0: as many as the machine has cores; 1: none but this one).
        ``progress`` is called with (files done, files to do). Raises DataError when no file can be read.
        """
        folder = cache / "features" / f"{self.name}-{self.version}-{self._key()}"
        self.need_packages()
        soundfile()  # here, where the fault reaches the user, rather than in every process
        keys = [_content_key(file) for file in files]
        shards = Shards(folder)
        new = {key: file for key, file, at in zip(keys, files, shards.find(keys).shard, strict=True) if at < 0}
        if new:
            self._extract_new(new, folder, workers, progress)
            shards = Shards(folder)
        rows = shards.gather(shards.find(keys), self.width, np.dtype(np.float32))
        without = np.flatnonzero(rows.lengths == 0)
        if len(without) == len(files):
            raise DataError(
                f"none of {len(files)} sound files has sound, such as {files[0].path}; give FLAC or WAV files."
            )
        if len(without):
            first = files[without[0]].path
            log.warning(
                "%d of %d sound files have no sound or cannot be read (first: %s)", len(without), len(files), first
            )
        return rows

    def _extract_new(self, new: dict[bytes, MediaFile], folder: Path, workers: int, progress: Report | None) -> None:
        keys, rows = list(new), []
        for done, row in enumerate(self._rows(list(new.values()), workers), start=1):
            rows.append(row)
            if progress is not None:
                progress(done, len(new))
            if len(rows) == FILES_PER_SHARD or done == len(new):
                part = Ragged.from_rows(rows)
                with new_shard(
                    folder, keys[done - len(rows) : done], part.lengths, width=part.width, dtype=part.values.dtype
                ) as shard:
                    shard.values[:] = part.values
                rows = []

    def _rows(self, files: list[MediaFile], workers: int) -> Iterator[np.ndarray]:
        """Features of each file in the order given, without steps where it cannot be read."""
        workers = min(workers or len(os.sched_getaffinity(0)), -(-len(files) // 8))
        if workers <= 1 or not self.several_processes:
            yield from (self._one(file) for file in files)
            return
        done = 0
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process) as pool:
                for row in pool.map(self._one, files, chunksize=4):
                    done += 1
                    yield row
        except BrokenProcessPool:
            # Spawned processes import the caller's main script; one without a __main__ guard cannot be imported.
            log.warning("the %d extracting processes ended; going on with one", workers)
            yield from (self._one(file) for file in files[done:])

    def _one(self, file: MediaFile) -> np.ndarray:
        try:
            return self(read_sound(file, self.cfg.sample_rate))
        except MoodalError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # soundfile's faults are RuntimeErrors
            log.warning("%s cannot be read as sound (%s: %s)", file.path, type(error).__name__, error)
            return self.nothing()[0]

    def _key(self) -> str:
        return hashlib.sha256(repr(sorted(asdict(self.cfg).items())).encode()).hexdigest()[:16]


def read_sound(file: MediaFile, rate: int) -> np.ndarray:
    """(S,) float32 samples, mono (the mean of all channels), resampled to ``rate`` Hz.

    Raises RuntimeError or OSError when the file is no sound file that libsndfile reads.
    """
    samples, found = soundfile().read(io.BytesIO(file.bytes()), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if found == rate else librosa().resample(mono, orig_sr=found, target_sr=rate)


def _content_key(file: MediaFile) -> bytes:
    try:
        return hashlib.sha256(file.bytes()).digest()
    except OSError as error:
        raise DataError(
            f"{file.path} cannot be read ({error.strerror}); check the file and its permissions."
        ) from error


def soundfile() -> Any:
    """The package soundfile. Raises MissingExtra."""
    try:
        import soundfile as package
    except ImportError as error:
        raise MissingExtra("soundfile", "audio") from error
    return package


def librosa() -> Any:
    """The package librosa. Raises MissingExtra."""
    try:
        import librosa as package
    except ImportError as error:
        raise MissingExtra("librosa", "audio") from error
    return package


def _start_process() -> None:
    """In an extracting process: one thread, for there are as many processes as cores, and an end with the parent."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    end_with_parent()
