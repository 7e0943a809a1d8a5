"""Frames to the main speaker's face, measured: mediapipe's face mesh, tracking, and the signals of ``face_signals``."""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from moodal.core.errors import MissingExtra, MoodalError, check
from moodal.core.spec import Modality
from moodal.data.corpus import FeatureRecipe
from moodal.features.face_points import POINTS
from moodal.features.face_signals import CHANNELS, confidence, signals
from moodal.features.face_tracks import Followed, distinct, follow
from moodal.features.frames import Frame

#: Standard error belongs to the whole process: one holds it at a time.
_STDERR = threading.Lock()
#: Lines of the loggers of TensorFlow Lite and absl, such as "W0000 00:00:17.5 2665 some_calculator.cc:186] ...".
_CHATTER = re.compile(rb"[WI]\d{4} .*\.cc:\d+\]|INFO: Created TensorFlow|WARNING: All log messages before absl")


@dataclass(frozen=True, kw_only=True)
class FaceSettings:
    """Settings of ``face_mesh``. ``hop``: seconds between the frames that it will be given.

    ``faces``: how many faces are looked for in a frame. ``detection``, ``tracking``: from which score, 0 to 1, a face is
    believed when it is found, and when it is followed into the next frame.
    """

    hop: float = 0.1
    faces: int = 4
    detection: float = 0.5
    tracking: float = 0.5

    def __post_init__(self) -> None:
        check(self.hop > 0, f"hop is {self.hop}; give the seconds between two frames.")
        check(1 <= self.faces <= 16, f"faces is {self.faces}; give 1 to 16.")
        for name in ("detection", "tracking"):
            value = asdict(self)[name]
            check(0 <= value <= 1, f"{name} is {value}; give a score from 0 to 1.")


@dataclass(frozen=True)
class FaceTrack:
    """What a vision extractor makes of T frames. ``values``: (T, D) float32, 0 where there is no face; ``times``: (T,)
    seconds; ``confidence``: (T,) in [0, 1], 0 where there is no face; ``faces``: (T,) faces seen; ``note``: what the
    user should know, without a full stop, or empty."""

    values: np.ndarray
    times: np.ndarray
    confidence: np.ndarray
    faces: np.ndarray
    note: str = ""

    def stream(self) -> tuple[np.ndarray, np.ndarray]:
        """The steps that a method gets, those with a face: (S, D) values and (S,) times."""
        found = self.confidence > 0
        return self.values[found], self.times[found]


@dataclass(frozen=True)
class Seen:
    """One frame and the ``faces`` in it: (F, 478, 3) points in pixels, right, down and away from the camera."""

    frame: Frame
    faces: np.ndarray


class Film:
    """What was seen in the frames of a clip so far."""

    def __init__(self) -> None:
        self._faces: list[np.ndarray] = []
        self._times: list[float] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, seen: Seen) -> None:
        """The next frame."""
        height, width = seen.frame.picture.shape[:2]
        self._faces.append(seen.faces)
        self._times.append(seen.frame.time)
        self._sizes.append((width, height))

    def speaker(self, states: np.ndarray | None = None) -> FaceTrack:
        """The main speaker's signals; or of ``states``, a row for each face of each frame in the order seen, the speaker's."""
        times = np.array(self._times, dtype=np.float64)
        followed = follow(self._faces, times)
        found = np.flatnonzero(followed.place >= 0)
        points = np.zeros((0, POINTS, 3))
        if len(found):
            points = np.stack([self._faces[frame][followed.place[frame]] for frame in found])
        sizes = np.array(self._sizes, dtype=np.float64).reshape(-1, 2)[found]
        measured = signals(points, sizes)
        trust = confidence(points, sizes, measured)
        counts = np.array([len(faces) for faces in self._faces], dtype=np.int64)
        if states is not None:
            measured = states[(np.cumsum(counts) - counts + followed.place)[found]]
        values, sure = np.zeros((len(times), measured.shape[1]), np.float32), np.zeros(len(times), np.float32)
        values[found], sure[found] = measured, trust
        return FaceTrack(values, times, sure, counts, _note(counts, followed))


class FaceMesh:
    """Frames -> 24 signals of the main speaker's face a step (``face_signals.CHANNELS``)."""

    name: ClassVar[str] = "face_mesh"
    version: ClassVar[str] = "1"
    modality: ClassVar[Modality] = "vision"
    Config: ClassVar[type[Any]] = FaceSettings

    def __init__(self, cfg: FaceSettings | None = None) -> None:
        self.cfg = FaceSettings() if cfg is None else cfg

    def recipe(self) -> FeatureRecipe:
        """Name, version, channels and settings, as the manifest keeps them."""
        return FeatureRecipe(
            name=self.name,
            version=self.version,
            width=len(CHANNELS),
            channels=CHANNELS,
            settings=asdict(self.cfg),
        )

    def __call__(self, frames: Iterable[Frame]) -> FaceTrack:
        """Measure the main speaker in every frame. Raises MissingExtra without mediapipe."""
        film = Film()
        for seen in self.watch(frames):
            film.add(seen)
        return film.speaker()

    def watch(self, frames: Iterable[Frame]) -> Iterator[Seen]:
        """Each frame with the faces in it. Frames must come in the order of time: a face is looked for where it was."""
        mesh, calm = None, False
        try:
            for frame in frames:
                # Each model writes to standard error when it runs first: until there was a face, one has yet to run.
                with _silenced(calm):
                    mesh = self._mesh() if mesh is None else mesh
                    found = mesh.process(np.ascontiguousarray(frame.picture)).multi_face_landmarks or []
                height, width = frame.picture.shape[:2]
                points = np.array([[(p.x, p.y, p.z) for p in face.landmark] for face in found], np.float32)
                # z is in the unit of x.
                points = points.reshape(-1, POINTS, 3) * np.array([width, height, width], np.float32)
                calm = calm or len(points) > 0
                yield Seen(frame, distinct(points))
        finally:
            if mesh is not None:
                mesh.close()

    def _mesh(self) -> Any:
        cfg = self.cfg
        return _face_mesh_module().FaceMesh(
            max_num_faces=cfg.faces,
            refine_landmarks=True,
            min_detection_confidence=cfg.detection,
            min_tracking_confidence=cfg.tracking,
        )


def _note(counts: np.ndarray, followed: Followed) -> str:
    frames, without = len(counts), int((followed.place < 0).sum())
    if not frames:
        return "no frame in the video"
    if without == frames:
        return f"no face in any of {frames} frames"
    told = [f"no face in {without} of {frames} frames"] if without else []
    if followed.people > 1:
        told.append(f"up to {int(counts.max())} faces at once; the main speaker was followed")
    if followed.jumps:
        told.append(f"the face was lost and found elsewhere {followed.jumps} times")
    return "; ".join(told)


@contextmanager
def _silenced(already: bool) -> Iterator[None]:
    """What mediapipe's libraries write to standard error left out, what anybody else writes passed on; nothing where
    ``already`` calm."""
    if already:
        yield
        return
    with _STDERR, tempfile.TemporaryFile() as written:
        kept = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not _CHATTER.match(line)))


def _face_mesh_module() -> Any:
    try:
        from mediapipe.python.solutions import face_mesh
    except ImportError as error:
        if importlib.util.find_spec("mediapipe") is None:
            raise MissingExtra("mediapipe", "face") from error
        raise MoodalError(
            f"mediapipe cannot be loaded ({error}); install the version with face models: pip install 'moodal[face]'."
        ) from error
    return face_mesh
