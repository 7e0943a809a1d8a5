"""Damaged media: small whole clips, and files made of them by flipping, cutting, joining and renaming."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from media_files import mutate, silent, state_duration, truncate, voice, write_clip

Change = Callable[[Path, np.random.Generator, Sequence[Path]], Path]


def write_seeds(folder: Path, *, seconds: float = 0.6) -> list[Path]:
    """One small clip of every container that is read, and a silent one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {"size": (96, 64), "rate": 25}
    made = [
        write_clip(folder / f"seed{suffix}", seconds, wave=voice(seconds, pitch=120 + 20 * number), **size)
        for number, suffix in enumerate(
            (".mp4", ".mkv", ".webm", ".avi", ".mpg", ".ts", ".wav", ".flac", ".mp3", ".ogg")
        )
    ]
    return [*made, write_clip(folder / "silent.mov", seconds, wave=silent(seconds), **size)]


def _cut_front(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[int(drawn.integers(1, len(content))) :])
    return path


def _zero_block(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    content = bytearray(path.read_bytes())
    start = int(drawn.integers(len(content)))
    block = min(len(content) - start, len(content) // 3)
    content[start : start + block] = bytes(block)
    path.write_bytes(bytes(content))
    return path


def _head(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    content = bytearray(path.read_bytes())
    for place in drawn.integers(0, min(256, len(content)), 12):
        content[place] = int(drawn.integers(256))
    path.write_bytes(bytes(content))
    return path


def _rename(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    suffix = str(drawn.choice([".wav", ".mp4", ".mkv", ".jpg", ".csv", ".m3u8", ".bin", ".mp3", ".avi"]))
    return path.rename(path.with_suffix(suffix))


def _join(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    first, second = path.read_bytes(), others[int(drawn.integers(len(others)))].read_bytes()
    path.write_bytes(first[: int(drawn.integers(len(first)))] + second[int(drawn.integers(len(second))) :])
    return path


def _foreign(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    """Something else by the name of a clip; also a list of clips that would make a reader open other files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("clip.mp4", b"x" * 100)
    contents = (
        b"",
        b"\0" * 5000,
        drawn.bytes(5000),
        b"<html><body>404 not found</body></html>",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        packed.getvalue(),
        b"Ein Text, kein Video.\n" * 50,
    )
    path.write_bytes(contents[int(drawn.integers(len(contents)))])
    return path


def _long(path: Path, drawn: np.random.Generator, others: Sequence[Path]) -> Path:
    if path.suffix in (".mp4", ".mov"):
        return state_duration(path, float(drawn.choice([0.0, 3600.0, 80000.0])))
    return mutate(path, int(drawn.integers(1 << 30)), flips=3, keep=200)


CHANGES: dict[str, Change] = {
    "few bytes flipped": lambda path, drawn, _: mutate(path, int(drawn.integers(1 << 30)), flips=5),
    "many bytes flipped": lambda path, drawn, _: mutate(
        path, int(drawn.integers(1 << 30)), flips=max(20, path.stat().st_size // 50)
    ),
    "head flipped": _head,
    "end cut off": lambda path, drawn, _: truncate(path, float(drawn.random())),
    "front cut off": _cut_front,
    "a block of zeros": _zero_block,
    "two files joined": _join,
    "renamed": _rename,
    "something else": _foreign,
    "length misstated": _long,
}


def write_mutants(folder: Path, seeds: Sequence[Path], count: int, *, first: int = 0) -> dict[str, str]:
    """``count`` damaged files in ``folder`` and their labels; file -> what was done to it. The same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    names, rows = list(CHANGES), ["file,id,label,split"]
    done: dict[str, str] = {}
    for number in range(first, first + count):
        drawn, name = np.random.default_rng(number), names[number % len(names)]
        seed = seeds[int(drawn.integers(len(seeds)))]
        path = folder / f"m{number:04}{seed.suffix}"
        path.write_bytes(seed.read_bytes())
        path = CHANGES[name](path, drawn, seeds)
        done[path.name] = name
        rows.append(f"{path.name},m{number:04},{number % 7},{('train', 'valid', 'test')[number % 3]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return done
