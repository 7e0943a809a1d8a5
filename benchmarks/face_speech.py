"""Do the mouth's signals follow what is heard? On clips of people who speak, nobody having labelled anything.

    python benchmarks/face_speech.py CLIP [CLIP ...]

The loudness of a clip (decibels, a frame long) is correlated with each signal of its face, in the median over the clips; beside it
the same with the sound of the next clip, which is chance. A mouth opens before the sound is loud and closes while it
rings: the best shift within 0.2 s is taken, of chance too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from moodal.features.face import FaceMesh, FaceSettings, FaceTrack
from moodal.features.face_signals import CHANNELS
from moodal.features.media import read_frames, read_sound

RATE, FRAMES = 16000, 25.0
#: Frames by which sound and face may lie apart.
SHIFTS = range(-5, 6)


def main() -> None:
    """Measure and print a line for each signal, the largest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    clips = sorted(parser.parse_args().clips)
    mesh = FaceMesh(FaceSettings(hop=1 / FRAMES))
    faces = [mesh(read_frames(clip, rate=FRAMES)) for clip in clips]
    sounds = [loudness(clip) for clip in clips]
    found = np.array([agreement(face, sound) for face, sound in zip(faces, sounds, strict=True)])
    chance = np.array([agreement(face, sound) for face, sound in zip(faces, sounds[1:] + sounds[:1], strict=True)])
    print(
        f"{'signal':16} {'own sound':>10} {'another':>9}   of {len(clips)} clips, median of the largest |r| within 0.2 s"
    )
    middle, other = np.median(found, axis=0), np.median(chance, axis=0)
    for place in np.argsort(-middle):
        print(f"{CHANNELS[place]:16} {middle[place]:10.2f} {other[place]:9.2f}")


def loudness(clip: Path) -> np.ndarray:
    """Decibels of each frame of the sound, not below -60 of the loudest."""
    wave = read_sound(clip, rate=RATE).wave
    steps = wave[: len(wave) // int(RATE / FRAMES) * int(RATE / FRAMES)].reshape(-1, int(RATE / FRAMES))
    level = 10 * np.log10(np.maximum(np.square(steps).mean(axis=1), 1e-12))
    return np.maximum(level, level.max() - 60)


def agreement(face: FaceTrack, sound: np.ndarray) -> np.ndarray:
    """(channels,) the largest |r| of each signal with ``sound`` over the shifts."""
    count = min(len(face.times), len(sound))
    found = []
    for shift in SHIFTS:
        here = np.arange(max(0, -shift), min(count, count - shift))
        here = here[face.confidence[here] > 0]
        values, heard = face.values[here], sound[here + shift]
        values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)
        heard = (heard - heard.mean()) / (heard.std() + 1e-9)
        found.append(np.abs((values * heard[:, None]).mean(axis=0)))
    return np.max(found, axis=0)


if __name__ == "__main__":
    main()
