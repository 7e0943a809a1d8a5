"""A face of the GRID corpus (CC BY 4.0), warped by known curves, through the whole mesh: the bars of the signals."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIPS = ROOT.parent / "shared" / "data" / "media_open" / "grid.tar"


@pytest.mark.real
@pytest.mark.skipif(not CLIPS.is_file(), reason="the shared open clips are not beside the repository")
def test_known_motion_of_a_real_face_is_followed(tmp_path):
    pytest.importorskip("mediapipe")
    found = importlib.util.spec_from_file_location("face_motion", ROOT / "benchmarks" / "face_motion.py")
    benchmark = importlib.util.module_from_spec(found)
    found.loader.exec_module(benchmark)
    with tarfile.open(CLIPS) as archive:
        first = min((member for member in archive if member.name.endswith(".mpg")), key=lambda member: member.name)
        (tmp_path / "clip.mpg").write_bytes(archive.extractfile(first).read())
    measured = benchmark.measure(tmp_path / "clip.mpg", frames=60, second=1.0, seed=0)
    for name, least in (("roll", 0.9), ("smile", 0.9), ("brow", 0.8)):
        assert measured[name][0] >= least, (name, measured[name])
