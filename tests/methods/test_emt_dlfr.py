"""EMT-DLFR: who reads whom in the fusion, the closed forms of both restorations, counts, and rows with nothing in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import MODALITIES, Classification, DataSpec, Regression, StreamSpec
from moodal.layers.promotion import MutualPromotion
from moodal.layers.siamese import Projected, RowBatchNorm, Siamese, attraction
from moodal.methods.emt_dlfr import EMTDLFR, EMTDLFRConfig, missing_steps, reconstruction

WIDTHS = {"text": 12, "audio": 5, "vision": 7}
STEPS = {"text": 6, "audio": 9, "vision": 4}
TINY = {
    "width": 8, "heads": 2, "layers": 2, "audio_hidden": 4, "vision_hidden": 4, "audio_width": 5, "vision_width": 4,
    "head_width": 8, "context_bottleneck": 4, "text_bottleneck": 4, "audio_bottleneck": 4, "vision_bottleneck": 4,
    "attention_dropout": 0.0, "dropout": 0.0, "head_dropout": 0.0,
}  # fmt: skip


def spec(*modalities: str, task: Any = None) -> DataSpec:
    streams = {m: StreamSpec("features", WIDTHS[m]) for m in modalities or MODALITIES}
    return DataSpec(streams=streams, task=task or Regression(-3.0, 3.0))


def build(given: DataSpec | None = None, **settings: Any) -> EMTDLFR:
    torch.manual_seed(0)
    return EMTDLFR(EMTDLFRConfig(**(TINY | settings)), given or spec())


def batch(rows: int = 5, *, drop: float = 0.4, seed: int = 1) -> Batch:
    """Ragged rows with at least one word, and their view with steps zeroed."""
    torch.manual_seed(seed)
    streams, degraded = {}, {}
    for m in MODALITIES:
        mask = torch.arange(STEPS[m]) < torch.randint(3, STEPS[m] + 1, (rows, 1))
        data = torch.randn(rows, STEPS[m], WIDTHS[m]) * mask[..., None]
        kept = mask & (torch.rand(mask.shape) >= drop)
        streams[m], degraded[m] = Stream(data, mask), Stream(data * kept[..., None], mask)
    target = Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool))
    return Batch(tuple(map(str, range(rows))), torch.arange(rows), streams, target, degraded=degraded)


def fusion(width: int = 8, *, heads: int = 2, layers: int = 2, **settings: Any) -> MutualPromotion:
    torch.manual_seed(0)
    return MutualPromotion(width, MODALITIES, heads=heads, layers=layers, **settings).eval()


def sequences(rows: int = 4, width: int = 8, *, seed: int = 2) -> tuple[Tensor, dict[str, Stream]]:
    torch.manual_seed(seed)
    made = {
        m: Stream(torch.randn(rows, t, width), torch.arange(t) < torch.randint(1, t, (rows, 1)))
        for m, t in STEPS.items()
    }
    return torch.randn(rows, 3, width), made


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- the fusion ------------------------------------------------------------------------------------------------


def test_counts_are_the_published_ones():
    assert count(fusion(128, heads=4, layers=3)) == count(fusion(128, heads=4, layers=2)) == 478_337
    assert count(fusion(32, heads=4, layers=4)) == 30_497
    alone = {"share_layers": False, "share_modalities": False, "share_directions": False}
    assert count(fusion(128, heads=4, layers=3, **alone)) == 6_386_691
    assert count(fusion(128, heads=4, layers=2, **alone)) == 4_257_794


def test_rubbish_on_padding_changes_neither_context_nor_real_steps():
    fuse, (context, made) = fusion(), sequences()
    rubbish = {
        m: Stream(
            torch.cat([s.data.where(s.mask[..., None], torch.tensor(9.0)), torch.full((4, 70, 8), 5.0)], dim=1),
            torch.cat([s.mask, torch.zeros(4, 70, dtype=torch.bool)], dim=1),
        )
        for m, s in made.items()
    }
    clean, dirty = fuse(context, made), fuse(context, rubbish)
    same(dirty.context, clean.context)
    for m, s in made.items():
        same(dirty.sequences[m][:, : STEPS[m]][s.mask], clean.sequences[m][s.mask])


def test_shared_units_do_not_care_in_which_order_the_streams_come():
    context, made = sequences()
    shuffled = dict(zip(MODALITIES, (made["vision"], made["text"], made["audio"])))
    same(fusion()(context, shuffled).context, fusion()(context, made).context)
    apart = fusion(share_modalities=False)
    assert not torch.allclose(apart(context, shuffled).context, apart(context, made).context, atol=1e-3)


def test_a_layer_reads_the_old_values_on_both_sides():
    """What changes in the audio reaches the text by way of the context, so after two layers and not after one."""
    context, made = sequences()
    other = made | {"audio": replace(made["audio"], data=made["audio"].data + 1.0)}
    reached = [
        not torch.equal(
            fusion(layers=n)(context, made).sequences["text"], fusion(layers=n)(context, other).sequences["text"]
        )
        for n in (1, 2)
    ]
    assert reached == [False, True]


def test_sequences_of_some_rows_are_those_of_all_rows():
    fuse, (context, made) = fusion(), sequences()
    whole, part, none = (fuse(context, made, rows=rows) for rows in (slice(None), slice(2, None), slice(0)))
    assert torch.equal(part.context, whole.context) and torch.equal(none.context, whole.context)
    for m in MODALITIES:
        same(part.sequences[m], whole.sequences[m][2:])
        assert len(none.sequences[m]) == 0


def test_heads_must_divide_the_width():
    with pytest.raises(MoodalError, match="multiple of heads"):
        EMTDLFRConfig(width=10, heads=4)


# ---- the two restorations --------------------------------------------------------------------------------------


def test_nothing_missing_means_equal_views_and_nothing_to_reconstruct():
    losses = build().eval().loss(replace(batch(), degraded=None))
    found = losses.output.features
    same(found["prediction_incomplete"], found["prediction_complete"])
    assert float(losses.parts["reconstruction"]) == 0.0


@pytest.mark.parametrize(("error", "loss"), [(0.0, 0.0), (1.0, 0.5), (3.0, 2.5)])
def test_reconstruction_is_smooth_l1_on_missing_steps_alone(error, loss):
    complete = torch.randn(4, 6, 3)
    missing = torch.rand(4, 6) < 0.5
    rebuilt = complete + error * missing[..., None] + 100.0 * ~missing[..., None]
    torch.testing.assert_close(reconstruction(rebuilt, complete, missing), torch.tensor(loss), rtol=1e-5, atol=1e-6)
    words = torch.cat([torch.full((4, 1, 3), 50.0), complete], dim=1)  # a summary in front is not rebuilt
    at = torch.cat([torch.ones(4, 1, dtype=torch.bool), missing], dim=1)
    torch.testing.assert_close(reconstruction(rebuilt, words, at), torch.tensor(loss), rtol=1e-5, atol=1e-6)


def test_attraction_lies_between_its_ends_and_leaves_the_other_side_alone():
    torch.manual_seed(0)
    pair = [Projected(*(torch.randn(50, 6, requires_grad=True) for _ in range(2))) for _ in range(2)]
    pull = attraction(*pair)
    assert float(pull.detach().abs().max()) <= 1.0
    gradients = torch.autograd.grad(pull.sum(), [t for one in pair for t in one], allow_unused=True)
    assert [g is None for g in gradients] == [True, False, True, False]
    alike = Projected(pair[0].projected, pair[0].projected)  # a predictor that is the identity, and equal views
    same(attraction(alike, alike), -torch.ones(50))


def test_a_single_row_is_normalised_by_running_statistics_and_leaves_them():
    norm = RowBatchNorm(3)
    norm(torch.randn(8, 3) * 4 + 2)
    before, row = {name: value.clone() for name, value in norm.state_dict().items()}, torch.randn(1, 3)
    found = norm(row)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    same(found, norm.eval()(row))
    assert bool(torch.isfinite(Siamese(3, 2).train()(row).predicted).all())


def test_statistics_of_the_views_do_not_mix():
    """In training each view is normalised by itself, the complete one first."""
    method, given = build().train(), batch()
    found = method.loss(given).output.features
    for view in ("complete", "incomplete"):
        projected = found[f"projected_audio_{view}"]
        same(projected.mean(dim=0), torch.zeros(projected.shape[1]))
    norm = method.siamese["audio"].projector_norm
    assert int(norm.num_batches_tracked) == 2


def test_a_row_without_a_stream_has_no_part_in_its_attraction():
    method, given = build().eval(), batch()

    def without(stream: Stream) -> Stream:
        row = (torch.arange(5) != 2)[:, None]
        return Stream(stream.data * row[..., None], stream.mask & row)

    views = [{**view, "audio": without(view["audio"])} for view in (given.streams, given.degraded)]
    cut = replace(given, streams=views[0], degraded=views[1])
    rest = given.rows(torch.tensor([0, 1, 3, 4]))
    same(method.loss(cut).parts["attraction_audio"], method.loss(rest).parts["attraction_audio"])


def test_what_is_missing_is_what_the_view_says_or_what_differs():
    given = batch()
    stream, view = given.streams["audio"], given.degraded["audio"]
    changed = stream.mask & (view.data == 0).all(dim=-1)
    assert torch.equal(missing_steps(given, "audio"), changed) and changed.any()
    observed = stream.mask & (torch.arange(STEPS["audio"]) > 1)
    told = replace(given, degraded={**given.degraded, "audio": replace(view, observed=observed)})
    assert torch.equal(missing_steps(told, "audio"), stream.mask & ~observed)
    gone = replace(given, degraded={**given.degraded, "audio": Stream(stream.data, torch.zeros_like(stream.mask))})
    assert torch.equal(missing_steps(gone, "audio"), stream.mask)
    assert not missing_steps(replace(given, degraded=None), "audio").any()


def test_the_weights_are_those_of_the_sum():
    parts = build().eval().loss(batch()).parts
    high, low = float(parts["attraction"]), float(parts["reconstruction"])
    pulls = sum(float(parts[f"attraction_{name}"]) for name in (*MODALITIES, "context"))
    assert high == pytest.approx(pulls + float(parts["task_complete"]), abs=1e-5)
    assert low == pytest.approx(sum(float(parts[f"reconstruction_{m}"]) for m in MODALITIES), abs=1e-5)
    total = float(build(attraction=0.5, reconstruction=2.0).eval().loss(batch()).total.detach())
    assert total == pytest.approx(float(parts["task"]) + 0.5 * high + 2.0 * low, abs=1e-5)


# ---- what enters, what leaves ----------------------------------------------------------------------------------


def test_prediction_reads_one_view_only():
    method, given = build().eval(), batch()
    same(method(given).prediction, method(replace(given, degraded=None)).prediction)
    same(method(given).prediction, method.loss(given).output.features["prediction_complete"])
    there = method(replace(given, streams=given.degraded)).prediction
    same(there, method.loss(given).output.prediction)


def test_first_and_last_token_are_no_words():
    """They reach the score as summary or not at all; a text of these two alone gives the attention nothing."""
    method, given = build().eval(), batch()
    text, last = given.streams["text"], given.streams["text"].mask.sum(dim=1) - 1
    other = text.data.clone()
    other[torch.arange(5), last] += 10.0
    same(
        method(replace(given, streams={**given.streams, "text": replace(text, data=other)})).prediction,
        method(given).prediction,
    )
    short = Stream(text.data, torch.arange(STEPS["text"]).expand(5, -1) < 2)
    moved = replace(short, data=text.data + 5.0 * (torch.arange(STEPS["text"]) >= 2)[:, None])
    for reference, free in ((False, True), (True, False)):
        method = build(reference=reference).eval()
        one, two = (method(replace(given, streams={**given.streams, "text": t})).prediction for t in (short, moved))
        assert torch.allclose(one, two, atol=1e-5) == free


def test_word_vectors_have_their_mean_as_summary():
    method, given = build(special_tokens=False).eval(), batch()
    text = given.streams["text"]
    same(method(given).features["text"], (text.data * text.mask[..., None]).sum(1) / text.mask.sum(1, keepdim=True))


@pytest.mark.parametrize("used", [("text",), ("audio",), ("audio", "vision")])
def test_any_modalities_and_classes(used):
    task = Classification(("a", "b", "c"))
    method, given = build(spec(*used, task=task)), batch()
    given = replace(given, target=Target(torch.tensor([0, 1, 2, 0, 1]), torch.ones(5, dtype=torch.bool)))
    losses = method.loss(given)
    assert losses.output.prediction.shape == (5, 3) and bool(torch.isfinite(losses.total))
    assert losses.output.inspection["pooling"].shape == (5, 2, len(used))


def test_equal_widths_need_no_map():
    method = build(audio_hidden=5, audio_width=5, vision_width=8)
    assert isinstance(method.readers["audio"].out, nn.Identity) and isinstance(
        method.projections["vision"], nn.Identity
    )
    assert bool(torch.isfinite(method.loss(batch()).total))


def test_encoders_are_groups_of_their_own():
    groups = build().stages()[0].passes[0].all_groups()
    assert [group.name for group in groups] == ["audio", "vision", "main"]
    assert sum(len(group.parameters()) for group in groups) == len(list(build().parameters()))
