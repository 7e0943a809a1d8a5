"""The POM reader on a made file of its form, and on the real one where it is there."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moodal.build import configure
from moodal.core.errors import DataError, MoodalError
from moodal.core.spec import Needs, Regression
from moodal.data import CORPORA
from moodal.data.pom import RATINGS, TRAITS, Pom, PomConfig
from moodal.metrics import PROTOCOLS, score
from moodal.prepare import prepare

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pom"
SIZES = {"train": 4, "valid": 2, "test": 3}


def arrays() -> dict[str, np.ndarray]:
    """Clips of 20 steps whose audio starts at step 5 + row and whose face is seen from step 15 + row on, if at all."""
    draw, found = np.random.default_rng(0), {}
    for split, count in SIZES.items():
        audio, vision = draw.uniform(0.1, 1, (count, 20, 43)), draw.uniform(0.1, 1, (count, 20, 41))
        for row in range(count):
            audio[row, : 5 + row] = 0
            vision[row, : 15 + row] = 0
        vision[-1] = 0  # the last clip of a split has no face
        found |= {f"{split}_audio": audio.astype(np.float32), f"{split}_vision": vision.astype(np.float32)}
        found[f"{split}_y"] = (np.arange(count * 17).reshape(count, 17) % 15 / 3 + 1).astype(np.float32)
    return found


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "pom.npz", **arrays())
    return tmp_path


def read(folder, **settings):
    return Pom.read(folder, PomConfig(**settings), folder)


def test_clips_labels_and_facts(folder):
    raw, given = read(folder), arrays()
    assert raw.facts.task == Regression(1.0, 7.0) and raw.facts.protocol == "pom"
    assert Counter(clip.split for clip in raw.clips) == SIZES
    assert [clip.label for clip in raw.clips[:4]] == pytest.approx(given["train_y"][:, RATINGS.index("sentiment")])
    assert raw.clips[4].id == "valid_000" and len({clip.id for clip in raw.clips}) == len(raw.clips)
    assert raw.facts.size == {}  # a file of other sizes than the published one


def test_ratings_are_columns_and_traits_have_a_scale_of_their_own(folder):
    assert len(RATINGS) == 17 and RATINGS[14] == "sentiment" and set(TRAITS) == set(RATINGS[8:14])
    given = arrays()
    for column, name in enumerate(RATINGS):
        raw = read(folder, rating=name)
        assert [clip.label for clip in raw.clips[:4]] == pytest.approx(given["train_y"][:, column])
        trait = name in TRAITS
        assert raw.facts.task == Regression(1.0, 5.0 if trait else 7.0)
        assert raw.facts.protocol == ("pom_traits" if trait else "pom")


def test_measured_steps_are_those_that_hold_anything(folder):
    raw, given = read(folder), arrays()
    assert raw.streams["audio"].lengths.tolist() == [15, 14, 13, 12, 15, 14, 15, 14, 13]
    assert raw.streams["vision"].lengths.tolist() == [5, 4, 3, 0, 5, 0, 5, 4, 0]
    assert np.array_equal(raw.streams["vision"][1], given["train_vision"][1, 16:])
    assert raw.streams["audio"].values.all()


def test_aligned_steps_are_the_same_words_in_both(folder):
    raw, given = read(folder, steps="aligned"), arrays()
    audio, vision = raw.streams["audio"], raw.streams["vision"]
    seen = vision.lengths > 0
    assert vision.lengths[seen].tolist() == audio.lengths[seen].tolist() and seen.sum() == 6
    assert np.array_equal(vision[2], given["train_vision"][2, 7:]) and np.array_equal(
        audio[2], given["train_audio"][2, 7:]
    )
    assert raw.recipes["vision"].settings == {"steps": "aligned"} != read(folder).recipes["vision"].settings


def test_it_can_be_prepared_and_scored(folder):
    cfg = configure("pom/text", {"data.root": str(folder)}).config
    data = prepare(read(folder), cfg, Needs())
    assert set(data.spec.streams) == {"audio", "vision"} and data.spec.task == Regression(1.0, 7.0)
    batch = data.splits["train"].rows(np.array([3, 0]))
    assert not batch.streams["vision"].mask[0].any() and batch.streams["vision"].mask[1].sum() == 5


def test_labels_beyond_the_scale_are_kept_and_told(folder, caplog):
    given = arrays()
    given["test_y"][1, 8] = 2 / 3
    np.savez(folder / "pom.npz", **given)
    with caplog.at_level(logging.WARNING):
        raw = read(folder, rating="reserved")
    assert "clips are rated reserved outside 1 to 5" in caplog.text
    assert raw.clips[7].label == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"test_y": np.zeros((3, 16), np.float32)}, r"test_y of pom.npz has the shape \(3, 16\); expected \(3, 17\)"),
        ({"train_vision": np.zeros((4, 19, 41), np.float32)}, r"train_vision .* expected \(4, 20, 41\)"),
        ({"valid_audio": np.full((2, 20, 43), np.nan, np.float32)}, "valid_audio of pom.npz holds NaN or inf"),
        (
            {f"valid_{m}": np.zeros((0, 20, w), np.float32) for m, w in (("audio", 43), ("vision", 41))}
            | {"valid_y": np.zeros((0, 17))},
            "the split valid is empty",
        ),
    ],
)
def test_faults_of_the_file_are_sentences(folder, change, told):
    np.savez(folder / "pom.npz", **{**arrays(), **change})
    with pytest.raises(DataError, match=told):
        read(folder)


def test_missing_and_damaged_files_are_sentences(folder, tmp_path_factory):
    for root in (None, tmp_path_factory.mktemp("empty")):
        with pytest.raises(DataError, match=r"(?=.*pom\.npz).*set data\.root"):
            Pom.read(root, PomConfig(), folder)
    (folder / "pom.npz").write_bytes((folder / "pom.npz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"pom.npz is no readable NPZ file"):
        read(folder)
    with pytest.raises(MoodalError, match=r"reader.rating is 'sentimant'; expected one of confident"):
        configure("pom/text", {"reader.rating": "sentimant"})


def test_the_table_of_corpora_has_it():
    assert CORPORA["pom"] is Pom and {"pom", "pom_traits"} <= set(PROTOCOLS)


def test_the_protocol_by_hand():
    # middle 4: rows rated 4 are left out of acc2; 3.4 is rounded to 3 and 7.6 clipped to 7
    scores = score("pom", [2.0, 5.0, 4.2, 3.4, 7.6], [1.0, 4.0, 3.0, 3.0, 7.0])
    assert scores["mae"] == pytest.approx((1 + 1 + 1.2 + 0.4 + 0.6) / 5) and scores["acc7"] == pytest.approx(2 / 5)
    assert scores["acc2"] == pytest.approx(3 / 4)  # wrong: 4.2 for 3
    # truth: three below, one above; below is found twice of three and always right, above once and wrongly once more
    assert scores["f1"] == pytest.approx(3 / 4 * 0.8 + 1 / 4 * 2 / 3)
    traits = score("pom_traits", [1.4, 4.0, 9.0], [1.0, 3.0, 5.0])
    assert traits["acc5"] == pytest.approx(2 / 3) and traits["acc2"] == 1.0
    assert np.isnan(score("pom", [3.0, 3.0], [1.0, 2.0])["corr"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared POM folder is not beside the repository")
def test_the_real_file_has_the_published_sizes_and_no_twins(caplog):
    with caplog.at_level(logging.WARNING):
        raw = Pom.read(REAL, PomConfig(), REAL)
    assert caplog.text == "" and raw.facts.size == {"train": 600, "valid": 100, "test": 203}
    audio, vision = raw.streams["audio"], raw.streams["vision"]
    assert audio.lengths.min() >= 1 and audio.lengths.max() == 20
    assert np.mean(vision.lengths == 0) == pytest.approx(0.538, abs=0.001)
    assert 1 - audio.lengths.mean() / 20 == pytest.approx(0.313, abs=0.001)
    assert (vision.lengths <= audio.lengths).all()
    assert len({audio[row].tobytes() for row in range(len(audio))}) == 903
    labels = np.array([clip.label for clip in raw.clips])
    assert labels.min() == 1.0 and labels.max() == 7.0 and np.allclose(labels * 3, np.rint(labels * 3), atol=1e-5)
