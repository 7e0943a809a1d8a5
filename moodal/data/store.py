"""Our form of a corpus on disk: a folder that opens in milliseconds, whatever its size.

``manifest.json`` says what is inside, with a checksum of every other file; ``table.jsonl`` holds one clip a line;
``<stream>.values.npy`` and ``<stream>.offsets.npy`` hold a ragged stream and are mapped into memory, not read. A store
is written into a folder beside its place and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moodal.core.errors import DataError
from moodal.core.spec import Classification, Identification, Regression, Task
from moodal.data.corpus import Clip, CorpusFacts, FeatureRecipe, RawCorpus
from moodal.data.ragged import Ragged

FORMAT = 1
MANIFEST, TABLE = "manifest.json", "table.jsonl"
TOKENS = "tokens."  # file names of token streams start with this


def is_store(path: Path) -> bool:
    """Whether ``path`` is a folder that holds a manifest."""
    return (path / MANIFEST).is_file()


def save_store(raw: RawCorpus, path: Path, *, overwrite: bool = False, report: Mapping[str, Any] | None = None) -> None:
    """Write ``raw`` as a store at ``path``; ``report`` (plain JSON values) is kept in the manifest.

    Raises ``DataError`` if something is at ``path`` already (a store is replaced with ``overwrite``, anything else
    never), if rows do not match the clips, or if the disk is full; nothing is left behind then.
    """
    path = path.resolve()
    _check_place(path, overwrite=overwrite)
    _check_rows(raw, path.name)
    with _aside(path) as folder:
        files: dict[str, Any] = {TABLE: _write_table(folder / TABLE, raw.clips)}
        for name, ragged in _all_streams(raw):
            for part, array in (("values", ragged.values), ("offsets", ragged.offsets)):
                files[f"{name}.{part}.npy"] = _write_array(folder / f"{name}.{part}.npy", array)
        manifest = {
            "format": FORMAT,
            "corpus": raw.facts.name,
            "facts": _facts_to_json(raw.facts),
            "clips": len(raw.clips),
            "sizes": dict(Counter(clip.split for clip in raw.clips)),
            "streams": {modality: asdict(raw.recipes[modality]) for modality in raw.streams},
            "tokens": sorted(raw.tokens),
            "token_recipe": None if raw.token_recipe is None else asdict(raw.token_recipe),
            "source": dict(raw.source),
            "report": None if report is None else dict(report),
            "files": files,
        }
        with _synced(folder / MANIFEST) as file:
            file.write(json.dumps(manifest, ensure_ascii=False, indent=1, allow_nan=False).encode())


def open_store(path: Path, *, corpus: str | None = None) -> RawCorpus:
    """The corpus stored at ``path``, its arrays mapped read-only.

    Sizes, shapes and counts are checked against the manifest; contents are not (:func:`verify_store` does that).
    Raises ``DataError`` if there is no store, if it is damaged, of another format, or not of ``corpus``.
    """
    manifest = read_manifest(path)
    if corpus is not None and manifest["corpus"] != corpus:
        raise DataError(f"{path} holds {manifest['corpus']}, not {corpus}; set data.root to a store of {corpus}.")
    try:
        return _open(path, manifest)
    except (KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path / MANIFEST} is damaged ({fault!r}); {_AGAIN}") from fault


def _open(path: Path, manifest: Mapping[str, Any]) -> RawCorpus:
    for name, facts in manifest["files"].items():
        _check_file(path / name, facts["bytes"])
    streams = {m: _open_ragged(path, m, manifest) for m in manifest["streams"]}
    recipes = {m: _recipe(recipe) for m, recipe in manifest["streams"].items()}
    for modality, recipe in recipes.items():
        if streams[modality].width != recipe.width:
            found = streams[modality].width
            raise DataError(f"{path}: {modality} is {found} wide and its recipe says {recipe.width}; {_AGAIN}")
    tokens = {role: _open_ragged(path, TOKENS + role, manifest) for role in manifest["tokens"]}
    recipe = manifest["token_recipe"]
    return RawCorpus(
        facts=_facts_from_json(manifest["facts"]),
        clips=_read_table(path / TABLE, manifest),
        streams=streams,
        recipes=recipes,
        tokens=tokens,
        token_recipe=None if recipe is None else _recipe(recipe),
        source=manifest["source"],
    )


def verify_store(path: Path) -> tuple[str, ...]:
    """Read every file of the store whole and compare its SHA-256 with the manifest; gives the names checked.

    Raises ``DataError`` naming the first file that differs, and everything :func:`open_store` raises.
    """
    open_store(path)
    files = read_manifest(path)["files"]
    for name, facts in files.items():
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != facts["sha256"]:
            raise DataError(f"{path / name} was changed since it was written (its SHA-256 differs); {_AGAIN}")
    return tuple(files)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at ``path``; raises ``DataError`` if absent, damaged or of another format."""
    if not is_store(path):
        raise DataError(f"{path} is not a store: it has no {MANIFEST}; import the corpus there first.")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as fault:
        raise DataError(f"{path / MANIFEST} is damaged ({fault}); {_AGAIN}") from fault
    if version != FORMAT:
        raise DataError(f"{path} has store format {version} and this version reads {FORMAT}; {_AGAIN}")
    missing = _MANIFEST_KEYS - set(manifest)
    if missing:
        raise DataError(f"{path / MANIFEST} is damaged: it lacks {', '.join(sorted(missing))}; {_AGAIN}")
    return manifest


_AGAIN = "import the corpus again."
_MANIFEST_KEYS = {"corpus", "facts", "clips", "sizes", "streams", "tokens", "token_recipe", "source", "report", "files"}


# ---- writing


def _check_place(path: Path, *, overwrite: bool) -> None:
    if is_store(path):
        if not overwrite:
            raise DataError(f"{path} already holds a store; choose another folder, or overwrite it (overwrite=True).")
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists and is not a store, so it is left alone; choose another folder.")


def _check_rows(raw: RawCorpus, where: str) -> None:
    for name, ragged in _all_streams(raw):
        if len(ragged) != len(raw.clips):
            raise DataError(f"{where}: {name} has {len(ragged)} rows and there are {len(raw.clips)} clips.")
    missing = [m for m in raw.streams if m not in raw.recipes]
    if missing:
        raise DataError(f"{where}: {missing[0]} has no recipe, so nothing says how it was made; add one.")


def _all_streams(raw: RawCorpus) -> Iterator[tuple[str, Ragged]]:
    """(file stem, stream) of features and tokens."""
    yield from raw.streams.items()
    yield from ((TOKENS + role, ragged) for role, ragged in raw.tokens.items())


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A fresh folder beside ``path`` that takes its place at the end, or disappears if anything fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as fault:
        raise _disk_fault(path, fault) from fault
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        _sync_folder(folder)
        _swap(folder, path)
    except OSError as fault:
        raise _disk_fault(path, fault) from fault
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, path: Path) -> None:
    """Rename ``folder`` to ``path``; a store that is there moves away first and is deleted last."""
    old = folder.with_name(folder.name + ".old")
    if is_store(path):
        path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _disk_fault(path: Path, fault: OSError) -> DataError:
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"The disk is full, so {path} was not written and nothing was left there; free some space.")
    return DataError(f"{path} could not be written ({fault.strerror or fault}); nothing was left there.")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


class _Hashing:
    """A file to write to that keeps the checksum, so nothing is read back. NumPy writes to it in pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def facts(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    with _synced(path) as file:
        hashing = _Hashing(file)
        np.lib.format.write_array(hashing, np.ascontiguousarray(array), allow_pickle=False)
    return hashing.facts() | {"shape": list(array.shape), "dtype": array.dtype.str}


def _write_table(path: Path, clips: tuple[Clip, ...]) -> dict[str, Any]:
    with _synced(path) as file:
        hashing = _Hashing(file)
        for clip in clips:
            row = {key: value for key, value in asdict(clip).items() if value not in ("", {}, ())}
            hashing.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    return hashing.facts()


# ---- reading


def _check_file(path: Path, size: int) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing; {_AGAIN}")
    found = path.stat().st_size
    if found != size:
        raise DataError(f"{path} has {found} bytes and the manifest says {size}; the copy is incomplete, {_AGAIN}")


def _open_ragged(path: Path, name: str, manifest: Mapping[str, Any]) -> Ragged:
    parts = {}
    for part in ("values", "offsets"):
        file = f"{name}.{part}.npy"
        facts = manifest["files"].get(file)
        if facts is None:
            raise DataError(f"{path / MANIFEST} is damaged: it does not list {file}; {_AGAIN}")
        parts[part] = _open_array(path / file, facts)
    ragged = Ragged(parts["values"], np.asarray(parts["offsets"]))
    if len(ragged) != manifest["clips"]:
        raise DataError(f"{path}: {name} has {len(ragged)} rows and there are {manifest['clips']} clips; {_AGAIN}")
    return ragged


def _open_array(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    empty = 0 in facts["shape"]  # nothing to map
    try:
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as fault:
        raise DataError(f"{path} is damaged ({fault}); {_AGAIN}") from fault
    if list(array.shape) != facts["shape"] or array.dtype.str != facts["dtype"]:
        found, wanted = f"{array.dtype.str} {array.shape}", f"{facts['dtype']} {tuple(facts['shape'])}"
        raise DataError(f"{path} holds {found} and the manifest says {wanted}; {_AGAIN}")
    return array


def _read_table(path: Path, manifest: Mapping[str, Any]) -> tuple[Clip, ...]:
    clips = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                words = tuple((word, start, end) for word, start, end in row.get("words", ()))
                clips.append(Clip(**{"text": "", **row, "words": words}))
            except (ValueError, TypeError, AttributeError) as fault:
                raise DataError(f"{path} line {number} is not a clip ({fault}); {_AGAIN}") from fault
    sizes = dict(Counter(clip.split for clip in clips))
    if sizes != manifest["sizes"] or len(clips) != manifest["clips"]:
        raise DataError(f"{path} has {sizes} clips and the manifest says {manifest['sizes']}; {_AGAIN}")
    return tuple(clips)


# ---- facts and recipes as JSON


def _recipe(row: Mapping[str, Any]) -> FeatureRecipe:
    return FeatureRecipe(**{**row, "channels": tuple(row["channels"])})


def _facts_to_json(facts: CorpusFacts) -> dict[str, Any]:
    return {**asdict(facts), "task": task_to_json(facts.task)}


def _facts_from_json(row: Mapping[str, Any]) -> CorpusFacts:
    return CorpusFacts(**{**row, "task": task_from_json(row["task"])})


def task_to_json(task: Task) -> dict[str, Any]:
    """``{"kind": ...}`` and "low" and "high" of a regression, "classes" or the number of "identities"."""
    if isinstance(task, Regression):
        return {"kind": "regression", "low": task.low, "high": task.high}
    if isinstance(task, Identification):
        return {"kind": "identification", "identities": task.identities}
    return {"kind": "classification", "classes": list(task.classes)}


def task_from_json(row: Mapping[str, Any]) -> Task:
    """The inverse of :func:`task_to_json`."""
    if row["kind"] == "regression":
        return Regression(row["low"], row["high"])
    if row["kind"] == "identification":
        return Identification(row["identities"])
    return Classification(tuple(row["classes"]))
