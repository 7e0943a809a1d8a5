"""Sound to frame features: pitch, cepstrum and pitch classes by librosa, 33 numbers a step."""

from __future__ import annotations

import hashlib
import io
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import DataError, MissingExtra, MoodalError
from moodal.data.corpus import FeatureRecipe
from moodal.data.extractors import LibrosaSettings, MediaFile, Report
from moodal.data.ragged import Ragged
from moodal.data.shards import Shards, new_shard

log = logging.getLogger(__name__)
PITCH_CLASSES = ("c", "c_sharp", "d", "d_sharp", "e", "f", "f_sharp", "g", "g_sharp", "a", "a_sharp", "b")
CHANNELS = ("log_f0", *(f"mfcc_{i}" for i in range(20)), *(f"chroma_{name}" for name in PITCH_CLASSES))
#: Files between two writes of the cache: what a killed extraction loses at most.
FILES_PER_SHARD = 256
#: Octaves above ``pitch_low`` that a voiced step has at least, so that 0 means unvoiced.
LOWEST_VOICED = 0.01


class Librosa33:
    """16 kHz mono sound -> (T, 33): log-F0 by pYIN, 20 MFCC, 12 chroma.

    ``log_f0`` is in octaves above ``pitch_low`` and 0 where unvoiced. pYIN: Mauch and Dixon, ICASSP 2014.
    """

    name: ClassVar[str] = "librosa_33"
    version: ClassVar[str] = "1"

    def __init__(self, cfg: LibrosaSettings | None = None) -> None:
        self.cfg = LibrosaSettings() if cfg is None else cfg

    def recipe(self) -> FeatureRecipe:
        """Name, version, channels and settings, as the manifest keeps them."""
        return FeatureRecipe(
            name=self.name, version=self.version, width=33, channels=CHANNELS, settings=asdict(self.cfg)
        )

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """(S,) float samples at the recipe's rate -> (T, 33) float32, one step per hop; (0, 33) for no sound."""
        librosa, cfg = _librosa(), self.cfg
        if cfg.trim_db is not None and len(wave):
            wave, _ = librosa.effects.trim(wave, top_db=cfg.trim_db, frame_length=cfg.window, hop_length=cfg.hop)
        if not len(wave) or not np.any(wave):
            return np.zeros((0, 33), np.float32)
        power = np.abs(librosa.stft(wave, n_fft=cfg.window, hop_length=cfg.hop)) ** 2
        mel = librosa.feature.melspectrogram(
            S=power, sr=cfg.sample_rate, n_mels=cfg.mels, fmin=cfg.mel_low, fmax=cfg.mel_high
        )
        decibels = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=cfg.range_db)
        cepstrum = librosa.feature.mfcc(S=decibels, n_mfcc=20)
        chroma = librosa.feature.chroma_stft(S=power, sr=cfg.sample_rate, n_chroma=12, tuning=0.0)
        steps = cepstrum.shape[1]
        return np.vstack([self._pitch(wave)[:, :steps], cepstrum, chroma]).T.astype(np.float32)

    def _pitch(self, wave: np.ndarray) -> np.ndarray:
        """(1, T) octaves above ``pitch_low``, 0 where unvoiced."""
        cfg = self.cfg
        pitch, _, _ = _librosa().pyin(
            wave,
            fmin=cfg.pitch_low,
            fmax=cfg.pitch_high,
            sr=cfg.sample_rate,
            frame_length=cfg.window,
            hop_length=cfg.hop,
            resolution=cfg.pitch_resolution,
        )
        voiced = np.isfinite(pitch)
        octaves = np.log2(np.where(voiced, pitch, cfg.pitch_low) / cfg.pitch_low)
        return np.where(voiced, np.maximum(octaves, LOWEST_VOICED), 0.0)[None]

    def extract(
        self, files: Sequence[MediaFile], cache: Path, *, workers: int = 0, progress: Report | None = None
    ) -> Ragged:
        """A row of (T_i, 33) for each file, kept below ``cache`` under recipe and content; empty where unreadable.

        ``workers``: processes of one thread each (0: as many as the machine has cores; 1: none but this one).
        ``progress`` is called with (files done, files to do). Raises DataError when no file can be read.
        """
        folder = cache / "features" / f"{self.name}-{self.version}-{self._key()}"
        _need_packages()  # here, where the fault reaches the user, rather than in every process
        keys = [_content_key(file) for file in files]
        shards = Shards(folder)
        new = {key: file for key, file, at in zip(keys, files, shards.find(keys).shard, strict=True) if at < 0}
        if new:
            self._extract_new(new, folder, workers, progress)
            shards = Shards(folder)
        rows = shards.gather(shards.find(keys), 33, np.dtype(np.float32))
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
                    folder, keys[done - len(rows) : done], part.lengths, width=33, dtype=part.values.dtype
                ) as shard:
                    shard.values[:] = part.values
                rows = []

    def _rows(self, files: list[MediaFile], workers: int) -> Iterator[np.ndarray]:
        """Features of each file in the order given, without steps where it cannot be read."""
        workers = min(workers or len(os.sched_getaffinity(0)), -(-len(files) // 8))
        if workers <= 1:
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
            return np.zeros((0, 33), np.float32)

    def _key(self) -> str:
        return hashlib.sha256(repr(sorted(asdict(self.cfg).items())).encode()).hexdigest()[:16]


def read_sound(file: MediaFile, rate: int) -> np.ndarray:
    """(S,) float32 samples, mono (the mean of all channels), resampled to ``rate`` Hz.

    Raises RuntimeError or OSError when the file is no sound file that libsndfile reads.
    """
    samples, found = _soundfile().read(io.BytesIO(file.bytes()), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if found == rate else _librosa().resample(mono, orig_sr=found, target_sr=rate)


def _content_key(file: MediaFile) -> bytes:
    try:
        return hashlib.sha256(file.bytes()).digest()
    except OSError as error:
        raise DataError(
            f"{file.path} cannot be read ({error.strerror}); check the file and its permissions."
        ) from error


def _need_packages() -> None:
    _librosa()
    _soundfile()


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtra("soundfile", "audio") from error
    return soundfile


def _librosa() -> Any:
    try:
        import librosa
    except ImportError as error:
        raise MissingExtra("librosa", "audio") from error
    return librosa


def _start_process() -> None:
    """In an extracting process: one thread, for there are as many processes as cores, and an end with the parent."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Otherwise a killed parent leaves its processes waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
