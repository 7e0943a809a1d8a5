"""CMGA: the closed forms of the gated block, its invariances, and which pair may hear which modality."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import MoodalError
from moodal.core.spec import DataSpec, Regression, StreamSpec
from moodal.layers.gated_attention import ForgetGateAttention
from moodal.layers.recurrent import GRU, LSTM
from moodal.methods.cmga import CMGA, CmgaConfig

WIDTHS = {"text": 6, "audio": 4, "vision": 5}


def stream(rows: int, steps: int, width: int, *, ragged: bool = True) -> Stream:
    lengths = torch.randint(1, steps + 1, (rows,)) if ragged else torch.full((rows,), steps)
    lengths[0] = steps
    mask = torch.arange(steps) < lengths[:, None]
    return Stream(torch.randn(rows, steps, width) * mask[..., None], mask)


def block(width: int = 4, **settings) -> ForgetGateAttention:
    torch.manual_seed(0)
    return ForgetGateAttention(width, **settings)


@torch.no_grad()
def fill(part: nn.Linear, weight: float, bias: float | None = None) -> None:
    part.weight.fill_(weight)
    if bias is not None:
        part.bias.fill_(bias)


def kept(residual: str, query: Stream, source: Stream) -> torch.Tensor:
    values = source.data if residual == "source" else query.data
    return torch.relu(values) * query.mask[..., None]


@pytest.mark.parametrize("residual", ["query", "source"])
def test_without_memory_the_residual_alone_is_left(residual):
    query, source = stream(3, 5, 4), stream(3, 5, 4, ragged=False)
    gated = block(residual=residual)
    fill(gated.memory, 0.0, 0.0)
    torch.testing.assert_close(gated(query, source).values, kept(residual, query, source))


def test_a_closed_gate_forgets_the_source_and_an_open_one_is_plain_attention():
    query, source = stream(3, 5, 4), stream(3, 7, 4)
    gated = block()
    fill(gated.forget, 0.0, -1e4)
    closed = gated(query, source)
    assert float(closed.gate.detach().max()) == 0.0
    torch.testing.assert_close(closed.values, kept("query", query, source))
    fill(gated.forget, 0.0, 1e4)
    plain = torch.relu(query.data + gated.memory(gated.attend(query, source))) * query.mask[..., None]
    torch.testing.assert_close(gated(query, source).values, plain)
    fill(gated.forget, 0.0, 0.0)
    assert bool((gated(query, source).gate == 0.5).all())


def test_a_source_of_one_step_is_heard_alike_by_every_query():
    query, source = stream(2, 5, 4), stream(2, 1, 4)
    gated = block()
    expected = gated.value(source.data).expand(-1, 5, -1)
    torch.testing.assert_close(gated.attend(query, source), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_order_of_the_source_is_nothing_and_that_of_the_query_everything(heads):
    query, source = stream(2, 5, 4, ragged=False), stream(2, 7, 4, ragged=False)
    gated, order, other = block(heads=heads), torch.randperm(7), torch.randperm(5)
    whole = gated(query, source).values
    shuffled = Stream(source.data[:, order], source.mask[:, order])
    torch.testing.assert_close(gated(query, shuffled).values, whole)
    turned = Stream(query.data[:, other], query.mask[:, other])
    torch.testing.assert_close(gated(turned, source).values, whole[:, other])


def test_what_stands_on_padded_source_steps_is_never_heard():
    query, source = stream(3, 5, 4), stream(3, 7, 4)
    gated = block()
    garbage = Stream(torch.where(source.mask[..., None], source.data, 1e3), source.mask)
    torch.testing.assert_close(gated(query, garbage).values, gated(query, source).values)


@pytest.mark.parametrize(("residual", "expected"), [("query", 2.905148), ("source", 3.905148)])
def test_the_small_case_of_the_specification(residual, expected):
    gated = block(1, residual=residual)
    for part in (gated.query, gated.key, gated.value):
        fill(part, 1.0)
    fill(gated.forget, 1.0, 0.0)
    fill(gated.memory, 1.0, 0.0)
    real = torch.ones(1, 1, dtype=torch.bool)
    found = gated(Stream(torch.tensor([[[1.0]]]), real), Stream(torch.tensor([[[2.0]]]), real))
    assert math.isclose(float(found.gate.detach()), 0.952574, abs_tol=1e-6)
    assert math.isclose(float(found.values.detach()), expected, abs_tol=1e-6)


def test_the_two_residuals_agree_on_equal_sequences():
    same = stream(2, 5, 4)
    torch.testing.assert_close(block(residual="query")(same, same).values, block(residual="source")(same, same).values)


def test_a_source_residual_over_unequal_lengths_is_refused_with_a_sentence():
    with pytest.raises(MoodalError, match="5 and 7 steps"):
        block(residual="source")(stream(2, 5, 4), stream(2, 7, 4))


@pytest.mark.parametrize("width", [4, 128])
def test_parameters_of_a_pair(width):
    assert sum(p.numel() for p in block(width).parameters()) == 6 * width**2 + 2 * width


def method(streams: tuple[str, ...] = ("text", "audio", "vision"), **settings) -> CMGA:
    torch.manual_seed(1)
    spec = DataSpec(streams={m: StreamSpec("features", WIDTHS[m]) for m in streams}, task=Regression(-3.0, 3.0))
    return CMGA(CmgaConfig(**{"width": 8, "fusion_heads": 2, **settings}), spec).eval()


def batch(rows: int = 4) -> Batch:
    torch.manual_seed(2)
    streams = {m: stream(rows, steps, WIDTHS[m]) for m, steps in (("text", 5), ("audio", 8), ("vision", 6))}
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams)


def test_audio_does_not_reach_the_pair_of_vision_and_text():
    cmga, given = method(), batch()
    louder = {**given.streams, "audio": Stream(given.streams["audio"].data * 3, given.streams["audio"].mask)}
    other = Batch(ids=given.ids, index=given.index, streams=louder)
    one, two = cmga(given).features, cmga(other).features
    assert torch.equal(one["vision_to_text_gated"], two["vision_to_text_gated"])
    assert not torch.equal(one["audio_to_text_gated"], two["audio_to_text_gated"])


@pytest.mark.parametrize(("pairs", "count"), [("one", 3), ("all", 6)])
def test_how_many_pairs_there_are(pairs, count):
    assert len(method(pairs=pairs).pairs) == count
    assert len(method(("text", "audio"), pairs=pairs).pairs) == count // 3
    assert len(method(("audio",), pairs=pairs).pairs) == 0


def test_the_gate_learns():
    cmga = method()
    total = cmga(batch()).prediction.sum()
    gradients = torch.autograd.grad(total, [gated.forget.weight for gated in cmga.gated.values()])
    assert all(float(g.abs().max()) > 0 for g in gradients)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("encoder", [LSTM, GRU])
def test_the_recurrent_encoder_reads_real_steps_as_a_packed_one_does(encoder, bidirectional):
    torch.manual_seed(3)
    ours = encoder(4, 3, layers=2, bidirectional=bidirectional)
    theirs = encoder.cell(4, 3, num_layers=2, bidirectional=bidirectional, batch_first=True)
    state = theirs.state_dict()
    for name in state:
        kind, layer = name.removesuffix("_reverse").rsplit("_l", 1)
        side = ours.back if name.endswith("_reverse") else ours.ahead
        state[name].copy_(side[int(layer)].state_dict()[f"{kind}_l0"])
    given = stream(5, 7, 4)
    lengths = given.mask.sum(dim=1)
    packed = nn.utils.rnn.pack_padded_sequence(given.data, lengths, batch_first=True, enforce_sorted=False)
    expected, state = theirs(packed)
    last = state[0] if encoder is LSTM else state
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=7)
    states, end = ours(given.data, given.mask)
    torch.testing.assert_close(states, expected)
    wanted = torch.cat([last[-2], last[-1]], dim=-1) if bidirectional else last[-1]
    torch.testing.assert_close(end, wanted)


def test_the_recurrent_encoder_does_not_see_where_the_padding_is():
    torch.manual_seed(4)
    encoder, given = LSTM(4, 3), stream(1, 5, 4, ragged=False)
    front = Stream(
        torch.cat([torch.full((1, 2, 4), 9.0), given.data], dim=1),
        torch.cat([torch.zeros(1, 2, dtype=torch.bool), given.mask], dim=1),
    )
    plain, shifted = encoder(given.data, given.mask), encoder(front.data, front.mask)
    torch.testing.assert_close(shifted[0][:, 2:], plain[0])
    torch.testing.assert_close(shifted[1], plain[1])
    assert not bool(shifted[0][:, :2].any())
