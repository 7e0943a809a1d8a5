"""The server's temporary folder: everything it writes is in there, and it goes away with the server."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "moodal-serve-"
_LOCK = "lock"
#: Seconds before a folder without a locked lock counts as left behind: another server may just be making it.
_YOUNG = 60


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that is removed at the end; those that killed servers of this user left behind go first.

    A running server holds a lock in its folder, which the system lets go of however the server ends.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    try:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or time.time() - facts.st_mtime < _YOUNG:
            return False
        with (folder / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is in use
        return False
    return True
