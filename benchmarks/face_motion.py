"""How well the signals of a face follow known motion: one picture of a real face, warped, through the whole face mesh.

    python benchmarks/face_motion.py CLIP [--frames 120] [--second 1.0]

A frame of CLIP is taken. Its lip corners, brows, chin and whole picture are moved by known, unrelated, smooth curves
(bell-shaped displacements around the points that the mesh finds there, then a turn), noise is added, and the pictures
go through the extractor. Printed for each curve: the correlation with the signal that should follow it, and of those with
the others' signals the largest. Several clips are measured one after another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from moodal.features import face_points as at
from moodal.features.face import FaceMesh
from moodal.features.face_signals import CHANNELS
from moodal.features.media import Frame, read_frames

#: Curve -> the signal that should follow it.
FOLLOWS = {"roll": "head_roll", "smile": "AU12_r", "brow": "AU01_r", "jaw": "AU26_r"}
#: Largest excursion: degrees, and shares of the eye distance.
REACH = {"roll": 15.0, "smile": 0.12, "brow": 0.10, "jaw": 0.15}
#: Share of the eye distance at which a displacement has faded to 0.6.
BELL = 0.22
HOP = 0.1


def curves(frames: int, seed: int) -> dict[str, np.ndarray]:
    """Smooth curves in [-1, 1] (the jaw's in [0, 1]), uncorrelated with each other."""
    generator = np.random.default_rng(seed)
    seconds = HOP * np.arange(frames)[:, None]
    waves = [np.sin(2 * np.pi * (seconds * generator.uniform(0.1, 0.8, 4) + generator.random(4))) for _ in FOLLOWS]
    mixed = np.stack([wave.sum(axis=1) - wave.sum(axis=1).mean() for wave in waves], axis=1)
    apart, _ = np.linalg.qr(mixed)
    found = dict(zip(FOLLOWS, (apart / np.abs(apart).max(axis=0)).T, strict=True))
    found["jaw"] = (found["jaw"] + 1) / 2
    return found


def warped(picture: np.ndarray, face: np.ndarray, motion: dict[str, float], noise: np.ndarray) -> np.ndarray:
    """``picture`` with its ``face`` (478, 3) moved by ``motion``."""
    height, width = picture.shape[:2]
    unit = float(np.linalg.norm(face[[33, 133], :2].mean(axis=0) - face[[263, 362], :2].mean(axis=0)))
    moves = _moves(face[:, :2], motion, unit)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    source = grid.copy()
    for _ in range(4):  # where a pixel came from: the displacement at its source, found step by step
        source = grid - _displacement(source, moves, unit)
    centre = face[list(at.STABLE), :2].mean(axis=0)
    turn = cv2.invertAffineTransform(cv2.getRotationMatrix2D(tuple(map(float, centre)), -motion["roll"], 1.0))
    sheet = source.astype(np.float32)
    moved = cv2.remap(picture, sheet, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    turned = cv2.warpAffine(moved, turn, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                            borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return np.clip(turned + noise, 0, 255).astype(np.uint8)


def _moves(face: np.ndarray, motion: dict[str, float], unit: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(centre, displacement) pairs in pixels: x to the right, y down."""
    smile, brow, jaw = (unit * motion[name] for name in ("smile", "brow", "jaw"))
    found = [(face[61], np.array([-0.6, -0.8]) * smile), (face[291], np.array([0.6, -0.8]) * smile)]
    for side in (*at.INNER_BROW, *at.OUTER_BROW):
        found.append((face[list(side)].mean(axis=0), np.array([0.0, -1.0]) * brow))
    for points in (at.LOWER_LIP_BOTTOM, at.CHIN):
        found.append((face[list(points)].mean(axis=0), np.array([0.0, 1.0]) * jaw))
    return found


def _displacement(places: np.ndarray, moves: list[tuple[np.ndarray, np.ndarray]], unit: float) -> np.ndarray:
    centres, steps = np.stack([m[0] for m in moves]), np.stack([m[1] for m in moves])
    distance = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    weights = np.linalg.solve(np.exp(-distance / (2 * (BELL * unit) ** 2)), steps)
    field = np.zeros_like(places)
    for centre, weight in zip(centres, weights, strict=True):
        field += np.exp(-((places - centre) ** 2).sum(-1) / (2 * (BELL * unit) ** 2))[..., None] * weight
    return field


def measure(clip: Path, frames: int, second: float, seed: int) -> dict[str, tuple[float, float, str]]:
    """Curve -> correlation with its signal, the largest with another's signal, and that signal."""
    mesh = FaceMesh()
    still = next(frame for frame in read_frames(clip, rate=1 / HOP) if frame.time >= second)
    seen = next(mesh.watch([still]))
    if not len(seen.faces):
        raise SystemExit(f"{clip.name} has no face at {second} s; choose another second.")
    moved = curves(frames, seed)
    generator = np.random.default_rng(seed)

    def pictures() -> Iterator[Frame]:
        for step in range(frames):
            now = {name: REACH[name] * float(curve[step]) for name, curve in moved.items()}
            noise = generator.normal(0, 3, still.picture.shape)
            yield Frame(step * HOP, warped(still.picture, seen.faces[0], now, noise))

    track = mesh(pictures())
    values = track.values[track.confidence > 0]
    found = {}
    for name, signal in FOLLOWS.items():
        curve = moved[name][track.confidence > 0]
        others = {s: abs(np.corrcoef(curve, values[:, CHANNELS.index(s)])[0, 1]) for s in FOLLOWS.values()}
        own = float(np.corrcoef(curve, values[:, CHANNELS.index(signal)])[0, 1])
        others.pop(signal)
        other = max(others, key=lambda s: others[s])
        found[name] = (own, float(others[other]), other)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--second", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = []
    for clip in given.clips:
        begin = time.process_time()
        found = measure(clip, given.frames, given.second, given.seed)
        rows.append([own for own, _, _ in found.values()])
        told = "  ".join(f"{name} {own:.3f} (other: {signal} {r:.2f})" for name, (own, r, signal) in found.items())
        print(f"{clip.name}: {told}  [{time.process_time() - begin:.0f} s]", flush=True)
    print(f"mean of {len(rows)}:", *(f"{n} {v:.3f}" for n, v in zip(FOLLOWS, np.mean(rows, axis=0), strict=True)))
    print("lowest:", *(f"{n} {v:.3f}" for n, v in zip(FOLLOWS, np.min(rows, axis=0), strict=True)))


if __name__ == "__main__":
    main()
