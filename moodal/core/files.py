"""Files that are never half-written: everything goes to a neighbour first and is renamed when it is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from moodal.core.errors import MoodalError

#: How a temporary neighbour of a file is called.
_HALF = re.compile(r"\..+\.[a-z0-9_]{8}")


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbour of ``path`` to write (a file); on success it replaces ``path``, else it is removed.

    Raises ``MoodalError`` where the disk is full or the place cannot be written.
    """
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """The same for a folder that does not exist yet: filled beside, then renamed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except OSError as fault:
        raise _cannot_write(path, fault) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(path: Path, fault: OSError) -> MoodalError:
    if fault.errno == errno.ENOSPC:
        return MoodalError(
            f"The disk is full: {path} could not be written and nothing is left half-written; free space and try again."
        )
    reason = fault.strerror or fault
    return MoodalError(f"{path} could not be written ({reason}); check the folder's permissions or choose another one.")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinities become null."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """``value`` with NaN and infinities as None, tuples as lists and mappings as dicts: what JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; a sentence if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MoodalError(f"{path} does not exist; expected a JSON file there.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise MoodalError(f"{path} is not valid JSON ({fault}); it is damaged or not what it should be.") from fault


@contextmanager
def held(path: Path, otherwise: str) -> Iterator[None]:
    """Hold the lock file ``path``, which the system lets go of however the process ends; it is removed at the end.

    Raises ``MoodalError`` with the sentence ``otherwise`` where another process holds it. Where a system or its disk
    knows no locks, nothing is held: two runs at once are then the user's to avoid.
    """
    with _own(path, otherwise):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _own(path: Path, otherwise: str) -> IO[Any]:
    """The open lock file. One that its last owner removed after we had opened it is nobody's, so it is made again."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as fault:
            raise _cannot_write(path, fault) from fault
        try:
            lock(file, otherwise)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def lock(file: IO[Any], otherwise: str) -> None:
    """The same for an open file, until it is closed."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MoodalError(otherwise) from None
    except OSError:
        return


def drop_halves(folder: Path) -> None:
    """Remove what a killed process left of files that it wrote aside; for whoever holds the folder."""
    for path in folder.glob(".*"):
        if _HALF.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
