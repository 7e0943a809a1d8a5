"""Plots render for awkward inputs, are the same bytes every time, and leave matplotlib's settings alone."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from moodal.bench import plots
from moodal.bench.picture import draw
from moodal.bench.runs import StoredRun
from moodal.bench.tables import Number
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, Regression

NAN = float("nan")
SCALE = Regression(-3.0, 3.0)


def is_svg(data: bytes) -> bool:
    return ElementTree.fromstring(data).tag.endswith("svg")


@pytest.fixture
def history():
    return {
        "stage": ("a", "a", "b"),
        "epoch": (1.0, 2.0, 1.0),
        "loss": (3.0, NAN, 1.0),
        "part": (1.0, 1.0, 1.0),
        "valid_mae": (1.0, NAN, 0.5),
        "best": (1.0, 0.0, 1.0),
    }


def test_label_bins():
    wide = plots.label_bins(np.array([-3.0, -0.4, 0.6, 2.6, NAN]), SCALE)
    assert wide.names == ("-3", "-2", "-1", "0", "+1", "+2", "+3")
    assert wide.place.tolist() == [0, 3, 4, 6, -1]
    narrow = plots.label_bins(np.array([-1.0, 0.0, 1.0]), Regression(-1.0, 1.0))
    assert narrow.place.tolist() == [0, 2, 4] and len(narrow.names) == 5
    assert plots.label_bins(np.array([1.0, NAN]), Classification(("a", "b"))).filled == [1]


def test_training_curves(history):
    assert is_svg(
        plots.training_curves([("seed 1", history), ("seed 2", history)], metric="mae", chosen=[("a", 2.0), None])
    )
    assert is_svg(plots.training_curves([("seed 1", history)], metric="absent"))
    with pytest.raises(MoodalError, match="no history"):
        plots.training_curves([], metric=None)


@pytest.mark.parametrize("rows", [0, 1, 2, 40])
def test_scatter_with_few_or_constant_or_unlabelled_rows(rows):
    target = np.linspace(-3, 3, rows)
    target[rows // 2 :: 7] = NAN
    assert is_svg(plots.prediction_scatter(target, np.zeros(rows), low=-3, high=3))


def test_same_bytes_every_time():
    random = np.random.default_rng(0)
    target, guess = random.uniform(-3, 3, 30), random.uniform(-3, 3, 30)
    assert plots.prediction_scatter(target, guess, low=-3, high=3) == plots.prediction_scatter(
        target, guess, low=-3, high=3
    )


def test_confusion_with_hostile_class_names_and_an_empty_class():
    names = ("$\\frac{", "<b>", "äöü & long name of a class", "never")
    assert is_svg(plots.confusion_matrix(np.array([0.0, 1, 2, NAN]), np.array([0.0, 2, 2, 1]), classes=names))


def test_routing_and_gates():
    random = np.random.default_rng(0)
    target = np.append(random.uniform(-3, 3, 20), NAN)
    assert is_svg(plots.routing_map(random.dirichlet(np.ones(4), (21, 3)), target, task=SCALE))
    assert is_svg(plots.gate_boxes(np.full((21, 2), 0.5), target, task=SCALE, names=("text", "audio")))
    with pytest.raises(MoodalError, match=r"clips, layers, experts"):
        plots.routing_map(np.zeros((21, 4)), target, task=SCALE)


def test_interval_bars():
    rows = [
        ("a" * 60, {"mae": Number((0.5, 0.6), low=0.4, high=0.7)}),
        ("b", {"mae": Number((NAN,)), "corr": Number((0.1,))}),
    ]
    assert is_svg(plots.interval_bars(rows, keys=["mae", "corr", "acc7"]))
    with pytest.raises(MoodalError, match="no score"):
        plots.interval_bars(rows, keys=["acc7"])


def test_matplotlib_settings_are_restored():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0}):
        plots.prediction_scatter(np.zeros(3), np.zeros(3), low=-3, high=3)
        assert matplotlib.rcParams["font.size"] == 31.0


def test_picture(make_run, tmp_path):
    run = StoredRun.open(make_run(sizes={"valid": 8, "test": 8}))
    first = draw(run, tmp_path / "docs" / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG") and draw(run, tmp_path / "b.png").read_bytes() == first
    bare = make_run(task="classification", inspection=False)
    assert is_svg(draw(bare, tmp_path / "c.svg").read_bytes())


def test_picture_refuses_what_it_cannot_do(make_run, tmp_path):
    folder = make_run()
    with pytest.raises(MoodalError, match="\\.png or \\.svg"):
        draw(folder, tmp_path / "a.gif")
    (folder / "predictions.csv").unlink()
    with pytest.raises(MoodalError, match="is missing"):
        draw(folder, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
