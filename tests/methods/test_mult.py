"""MulT: sizes of the official network, published and masked form, one to three modalities, streams of one step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.spec import Classification, DataSpec, Regression, StreamSpec
from moodal.methods.mult import MulT, MultConfig

WIDTHS = {"text": 6, "audio": 3, "vision": 4}
STEPS = {"text": 5, "audio": 9, "vision": 7}


def spec(widths: dict[str, int] | None = None, **changes: Any) -> DataSpec:
    streams = {m: StreamSpec("features", width) for m, width in (widths or WIDTHS).items()}
    return DataSpec(**({"streams": streams, "task": Regression(-3.0, 3.0)} | changes))


def build(widths: dict[str, int] | None = None, **settings: Any) -> MulT:
    torch.manual_seed(0)
    return MulT(MultConfig(**({"width": 8, "heads": 2, "layers": 2} | settings)), spec(widths)).eval()


def batch(lengths: dict[str, list[int]], steps: dict[str, int] | None = None, before: int = 0) -> Batch:
    """Rows of the given lengths, ``before`` steps of padding in front of each and the rest behind, all of it rubbish."""
    streams = {}
    for m, own in lengths.items():
        generator = torch.Generator().manual_seed(len(m))
        real = torch.randn(len(own), max(own), WIDTHS[m], generator=generator)
        size = before + (steps or STEPS)[m]
        data = torch.full((len(own), size, WIDTHS[m]), 9.0)
        place = torch.arange(size) - before
        mask = (place >= 0) & (place < torch.tensor(own)[:, None])
        data[:, before : before + max(own)] = real
        streams[m] = Stream(torch.where(mask[..., None], data, 9.0), mask)
    rows = len(next(iter(lengths.values())))
    target = Target(torch.randn(rows), torch.ones(rows, dtype=torch.bool))
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams, target=target)


RAGGED = {"text": [5, 2, 1, 3], "audio": [4, 9, 1, 0], "vision": [7, 1, 6, 2]}


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "count"),
    [(30, 5, 5, 1_073_731), (30, 4, 5, 874_651), (40, 4, 8, 1_540_601), (40, 5, 8, 1_892_441)],
)
def test_parameter_counts_of_the_official_network(width: int, layers: int, heads: int, count: int):
    cfg = MultConfig(width=width, layers=layers, heads=heads, kernels=(1, 1, 1))
    method = MulT(cfg, spec({"text": 300, "audio": 74, "vision": 35}))
    assert sum(parameter.numel() for parameter in method.parameters()) == count


def test_rows_of_full_length_are_as_published():
    whole = batch({m: [steps] * 3 for m, steps in STEPS.items()})
    same(build()(whole).prediction, build(reference=True)(whole).prediction)


def test_as_published_padding_counts():
    short, long = batch(RAGGED), batch(RAGGED, {m: steps + 3 for m, steps in STEPS.items()})
    published = build(reference=True)
    change = (published(long).prediction - published(short).prediction).detach().abs()
    assert float(change.max()) > 1e-2


def test_padding_may_stand_in_front():
    method = build()
    same(method(batch(RAGGED, before=4)).prediction, method(batch(RAGGED)).prediction)


def test_a_row_alone_is_a_row_in_company():
    method, given = build(), batch(RAGGED)
    whole = method(given).prediction
    for row in range(4):
        alone = method(given.rows(torch.tensor([row]))).prediction
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("modalities", [("text",), ("audio", "vision"), ("text", "audio", "vision")])
def test_any_modalities(modalities: tuple[str, ...]):
    """Alone a modality has its self-attention of width D; two give one source each."""
    method = build(modalities=modalities)
    memories = {1: 8, 2: 8, 3: 16}[len(modalities)]
    assert [memory.norm.weight.shape[0] for memory in method.memories.values()] == [memories] * len(modalities)
    assert len(method.crossmodal) == len(modalities) * (len(modalities) - 1)
    assert bool(torch.isfinite(method(batch(RAGGED)).prediction).all())


def test_one_target_reads_the_two_others():
    method = build(targets=("audio",))
    assert list(method.crossmodal) == ["audio_from_text", "audio_from_vision"] and list(method.memories) == ["audio"]
    given = batch(RAGGED)
    before = method(given).prediction
    changed = replace(
        given, streams={**given.streams, "text": Stream(given.streams["text"].data + 1, given.streams["text"].mask)}
    )
    assert not torch.allclose(method(changed).prediction[:3], before[:3])
    same(method(changed).prediction[3:], before[3:])  # this row has no audio that could read
    with pytest.raises(MoodalError, match="targets"):
        build({"text": 6}, targets=("audio",))


def test_a_stream_of_one_step_and_kernels_longer_than_streams():
    lengths = {"text": [2, 1], "audio": [1, 1], "vision": [3, 2]}
    method = build(kernels=(3, 3, 5))
    tight = batch(lengths, {m: max(own) for m, own in lengths.items()})
    same(method(tight).prediction, method(batch(lengths)).prediction)
    assert bool(torch.isfinite(build(kernels=(3, 3, 5), reference=True)(tight).prediction).all())


def test_a_convolution_over_three_steps_loses_two_in_both_forms():
    given = batch({m: [steps] * 2 for m, steps in STEPS.items()})
    published, ours = (build(reference=flag).enter(given)["audio"] for flag in (True, False))
    assert published[0].shape[1] == STEPS["audio"] - 2
    assert ours[1].sum(dim=1).tolist() == [STEPS["audio"] - 2] * 2
    same(ours[0][:, : STEPS["audio"] - 2], published[0])


def test_a_stream_of_the_models_width_is_not_convolved():
    method = build({"text": 8, "audio": 3, "vision": 4})
    assert method.entrances["text"].weight is None and method.entrances["audio"].weight is not None


def test_weights_are_dropped_by_source():
    method = build(attention_dropout=0.1, audio_attention_dropout=0.2, vision_attention_dropout=0.3)
    found = {name: block.layers[0].attention.dropout for name, block in method.crossmodal.items()}
    assert found == {name: {"t": 0.1, "a": 0.2, "v": 0.3}[name.split("_from_")[1][0]] for name in found}
    assert {block.layers[0].attention.dropout for block in method.memories.values()} == {0.1}


def test_only_the_texts_features_are_dropped_on_entering():
    method, given = build(embedding_dropout=0.5).train(), batch(RAGGED)
    torch.manual_seed(1)
    first = method.enter(given)
    second = method.enter(given)
    assert {m: first[m][0].equal(second[m][0]) for m in first} == {"text": False, "audio": True, "vision": True}


def test_the_head_adds_its_two_layers_to_what_enters():
    method, given = build(), batch(RAGGED)
    nn.init.zeros_(method.head.second.weight), nn.init.zeros_(method.head.second.bias)
    output = method(given)
    same(output.prediction, F.linear(output.features["fused"], method.head.out.weight, method.head.out.bias)[:, 0])


def test_depth_of_the_memories():
    assert [len(build(layers=n).memories["text"].layers) for n in (1, 4)] == [3, 4]
    assert len(build(layers=4, memory_layers=1).memories["text"].layers) == 1


def test_losses_of_both_tasks():
    given = batch(RAGGED)
    method = build()
    losses = method.loss(given)
    same(losses.total, (losses.output.prediction - given.target.value).abs().mean())
    classes = MulT(method.cfg, spec(task=Classification(("a", "b", "c"))))
    labels = replace(given, target=Target(torch.tensor([0, 1, 2, 0]), given.target.valid))
    losses = classes.loss(labels)
    same(losses.total, F.cross_entropy(losses.output.prediction, labels.target.value))


@pytest.mark.parametrize(
    "wrong", [{"width": 9}, {"layers": 0}, {"kernels": (1, 0, 1)}, {"targets": ()}, {"head_dropout": 1.0}]
)
def test_settings_are_checked(wrong: dict[str, Any]):
    with pytest.raises(MoodalError):
        MultConfig(**({"width": 8, "heads": 2} | wrong))
