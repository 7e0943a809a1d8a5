"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest

from moodal.core.errors import MoodalError
from moodal.core.files import aside, folder_aside, plain, read_json, sha256, write_json, write_text


def test_a_fault_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(KeyboardInterrupt), aside(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_fault_while_filling_a_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), folder_aside(tmp_path / "store") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with folder_aside(tmp_path / "store") as temporary:
        (temporary / "x").write_text("whole")
    assert (tmp_path / "store" / "x").read_text() == "whole"


@pytest.mark.parametrize("place", ["os.replace", "os.fsync"])
@pytest.mark.parametrize(
    "number, said", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "check the folder's permissions")]
)
def test_faults_of_the_disk_are_sentences(tmp_path, monkeypatch, place, number, said):
    def deed(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, deed)
    with pytest.raises(MoodalError, match=said):
        write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MoodalError, match="could not be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.nan, "b": (1, math.inf), "c": {"d": None}, 5: "x"})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1, None], "c": {"d": None}, "5": "x"}
    assert plain(np.float64("nan")) is None


def test_damaged_json_is_a_sentence(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1')
    for name in ("a.json", "b.json"):
        with pytest.raises(MoodalError, match=name):
            read_json(tmp_path / name)


def test_checksums_are_those_of_the_content(tmp_path):
    file: Path = tmp_path / "a"
    file.write_bytes(b"abc")
    assert sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
