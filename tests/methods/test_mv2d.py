"""MV2D: its parts are VSD, VCD and VML for two views and VSD for one; views that a row lacks take no part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moodal.build import configure
from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, DataSpec, Regression, StreamSpec, Task
from moodal.losses.distillation import Measure
from moodal.methods.mv2d import MV2D, MV2DConfig

WIDTHS = {"text": 7, "audio": 5, "vision": 3}
SMALL: dict[str, Any] = {
    "width": 8,
    "heads": 2,
    "head_width": 4,
    "feed_forward": 8,
    "hidden": 6,
    "code": 4,
    "dropout": 0.0,
}
NUMBER, CLASSES = Regression(-3.0, 3.0), Classification(("a", "b", "c"))


def spec(task: Task = CLASSES, streams: tuple[str, ...] = ("text", "audio", "vision")) -> DataSpec:
    return DataSpec(streams={m: StreamSpec("features", WIDTHS[m]) for m in streams}, task=task)


def build(given: DataSpec | None = None, **settings: Any) -> MV2D:
    torch.manual_seed(0)
    return MV2D(MV2DConfig(**(SMALL | settings)), spec() if given is None else given).eval()


def batch(rows: int = 6, given: DataSpec | None = None) -> Batch:
    torch.manual_seed(1)
    given = spec() if given is None else given
    steps = {"text": 5, "audio": 1, "vision": 9}  # audio is one vector per clip
    streams = {
        m: Stream(torch.randn(rows, steps[m], s.width), torch.ones(rows, steps[m], dtype=torch.bool))
        for m, s in given.streams.items()
    }
    value = torch.randint(0, 3, (rows,)) if isinstance(given.task, Classification) else torch.randn(rows)
    target = Target(value, torch.ones(rows, dtype=torch.bool))
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams, target=target)


def lacking(given: Batch, modality: str, rows: list[int]) -> Batch:
    mask = given.streams[modality].mask.clone()
    mask[rows] = False
    return replace(given, streams={**given.streams, modality: replace(given.streams[modality], mask=mask)})


def predictions(method: MV2D, given: Batch) -> tuple[Tensor, Tensor]:
    """P_v and P_z of every view, (n, N, C), from the features by the method's own linear maps."""
    features, heads = method(given).features, method.views
    seen = torch.stack([heads.observers[m](features[f"{m}_observation"]) for m in heads.names])
    told = torch.stack([heads.coders[m].classifier(features[f"{m}_code"]) for m in heads.names])
    return seen.softmax(-1), told.softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(dim=-1).mean()


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


# ---- how many views ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [("text", "audio"), ("audio", "vision")])
def test_two_views_are_vsd_vcd_and_vml_term_by_term(streams: tuple[str, ...]):
    given = spec(streams=streams)
    method, rows = build(given, joint=False), batch(given=given)
    parts, (v, z) = method.loss(rows).parts, predictions(method, rows)
    same(parts["sufficiency"], kl(v[0], z[0]) + kl(v[1], z[1]))
    same(parts["consistency"], kl(v[1], z[0]) + kl(v[0], z[1]))
    middle = z.mean(dim=0)
    same(parts["agreement"], 0.5 * (kl(z[0], middle) + kl(z[1], middle)))


def test_one_view_is_vsd_alone():
    given = spec(streams=("audio",))
    method, rows = build(given), batch(given=given)
    parts, (v, z) = method.loss(rows).parts, predictions(method, rows)
    assert method.joint is None
    same(parts["sufficiency"], kl(v[0], z[0]))
    same(parts["consistency"] + parts["agreement"], torch.zeros(()))
    same(method(rows).prediction.softmax(-1), z[0])


def test_three_views_by_the_definition():
    method, rows = build(joint=False), batch()
    parts, (v, z) = method.loss(rows).parts, predictions(method, rows)
    same(parts["consistency"], sum(kl(v[j], z[i]) for i in range(3) for j in range(3) if i != j) / 2)
    same(method(rows).prediction.exp(), z.mean(dim=0))


@pytest.mark.parametrize("task", [NUMBER, CLASSES])
def test_the_total_is_as_written(task: Task):
    given = spec(task)
    weights = {"sufficiency": 0.3, "consistency": 0.2, "agreement": 0.7}
    losses = build(given, **weights).loss(batch(given=given))
    expected = losses.parts["task"] + sum(weight * losses.parts[name] for name, weight in weights.items())
    same(losses.total.detach(), expected)


def test_the_joint_bottleneck_adds_its_own_task_losses_and_sufficiency():
    with_joint, rows = build(), batch()
    without = build(joint=False)
    without.load_state_dict(with_joint.state_dict(), strict=False)
    ours, theirs = with_joint.loss(rows).parts, without.loss(rows).parts
    assert ours["task"] > theirs["task"] and ours["sufficiency"] > theirs["sufficiency"]
    same(ours["consistency"], theirs["consistency"])
    same(ours["agreement"], theirs["agreement"])


# ---- views that are missing ----------------------------------------------------------------------------------------


def test_rows_that_all_lack_a_view_are_as_if_the_corpus_had_it_not():
    whole, pair = spec(), spec(streams=("text", "audio"))
    method = build(whole, joint=False)
    smaller = build(pair, joint=False)
    smaller.load_state_dict({k: v for k, v in method.state_dict().items() if "vision" not in k})
    rows = batch()
    gone = lacking(rows, "vision", list(range(6)))
    two = replace(rows, streams={m: s for m, s in rows.streams.items() if m != "vision"})
    same(method(gone).prediction, smaller(two).prediction)
    ours, theirs = method.loss(gone).parts, smaller.loss(two).parts
    for name in theirs:
        same(ours[name], theirs[name])


@pytest.mark.parametrize("joint", [True, False])
def test_what_stands_in_a_missing_stream_changes_nothing(joint: bool):
    method, rows = build(joint=joint), lacking(batch(), "audio", [0, 3])
    rubbish = rows.streams["audio"].data.clone()
    rubbish[[0, 3]] = 50.0
    changed = replace(rows, streams={**rows.streams, "audio": replace(rows.streams["audio"], data=rubbish)})
    same(method(changed).prediction, method(rows).prediction)
    same(method.loss(changed).total, method.loss(rows).total)


# ---- who teaches whom ----------------------------------------------------------------------------------------------


def test_distilled_towards_text_only_text_teaches():
    method, rows = build(joint=False, teachers=("text",)), batch()
    v, z = predictions(method, rows)
    same(method.loss(rows).parts["consistency"], kl(v[0], z[1]) + kl(v[0], z[2]))
    silent = spec(streams=("audio", "vision"))
    assert build(silent, teachers=("text",)).loss(batch(given=silent)).parts["consistency"] == 0


def test_priority_weighs_views_and_pairs():
    priority = {"text": 2.0, "vision": 0.0, "text_to_audio": 3.0, "audio_to_text": 0.0}
    method, rows = build(joint=False, priority=priority), batch()
    parts, (v, z) = method.loss(rows).parts, predictions(method, rows)
    same(parts["sufficiency"], 2 * kl(v[0], z[0]) + kl(v[1], z[1]))
    to_audio, to_vision = 0.5 * (3 * kl(v[0], z[1]) + kl(v[2], z[1])), 0.5 * (kl(v[0], z[2]) + kl(v[1], z[2]))
    same(parts["consistency"], kl(v[2], z[0]) + to_audio + to_vision)
    middle = (2 * z[0] + z[1]) / 3
    same(parts["agreement"], (2 * kl(z[0], middle) + kl(z[1], middle)) / 3)


def test_distillation_teaches_no_teacher():
    """The classifiers on observations learn from labels alone, whatever the weights of the sums over views."""
    method, rows = build(sufficiency=5.0, consistency=5.0, agreement=5.0), batch()
    plain = build(sufficiency=0.0, consistency=0.0, agreement=0.0)
    for one in (method, plain):
        one.loss(rows).total.backward()
    names = [name for name, _ in method.named_parameters() if "observers" in name]
    assert len(names) == 2 * 4  # weight and bias of three views and the joint one
    for name in names:
        same(method.get_parameter(name).grad, plain.get_parameter(name).grad)
    moved = method.get_parameter("views.coders.text.classifier.weight").grad
    assert not torch.allclose(moved, plain.get_parameter("views.coders.text.classifier.weight").grad, atol=1e-3)


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MV2D.ablations)
@pytest.mark.parametrize("task", [NUMBER, CLASSES])
def test_every_variant_runs_on_every_subset_of_views(name: str, task: Task):
    changes: dict[str, Any] = {}
    for key, value in MV2D.ablations[name].items():
        place = key.removeprefix("model.").split(".")
        changes[place[0]] = Measure(**{place[1]: value}) if len(place) == 2 else value
    for streams in (("text",), ("audio", "vision"), ("text", "audio", "vision")):
        given = spec(task, streams)
        losses = build(given, **changes).loss(batch(given=given))
        losses.total.backward()
        assert losses.total.isfinite() and losses.output.inspection["views"].shape[:2] == (6, len(streams))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"code": 0}, "code is 0"),
        ({"agreement": -1.0}, "agreement is -1.0"),
        ({"teachers": ("touch",)}, "touch"),
        ({"priority": {"text_to_text": 1.0}}, "priority names 'text_to_text'"),
        ({"priority": {"text": -1.0}}, "priority.text is -1.0"),
    ],
)
def test_faulty_settings_are_named(settings: dict[str, Any], sentence: str):
    with pytest.raises(MoodalError, match=sentence):
        MV2DConfig(**settings)


def test_settings_can_be_written_on_the_command_line():
    overrides = {"model.measure.direction": "student_first", "model.priority": {"text_to_audio": 2.0}}
    cfg = configure("synthetic/mv2d", overrides).config.model
    assert cfg.measure.direction == "student_first" and cfg.priority == {"text_to_audio": 2.0}
