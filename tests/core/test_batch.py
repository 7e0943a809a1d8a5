"""Batches, random numbers, tables of names, needs, groups: the vocabulary."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moodal.core.batch import Batch, Dialogue, Stream, Target
from moodal.core.errors import MoodalError
from moodal.core.method import Group
from moodal.core.random import derived_seed, generator, seed_all
from moodal.core.registry import Table
from moodal.core.spec import Classification, DataSpec, Needs, Regression, StreamSpec


def some_batch(count: int = 4) -> Batch:
    data, mask = torch.arange(count * 6.0).view(count, 3, 2), torch.ones(count, 3, dtype=torch.bool)
    stream, index = Stream(data, mask), torch.arange(count)
    other = Batch(ids=tuple(f"c{i}" for i in range(count)), index=index + 10, streams={"audio": stream})
    return Batch(
        ids=tuple(f"r{i}" for i in range(count)),
        index=index,
        streams={"audio": stream},
        target=Target(index.float(), index > 0),
        words=tuple(f"w{i}" for i in range(count)),
        explanations={"audio": stream},
        companions=other,
        dialogue=Dialogue(index // 2, index % 2, index),
    )


def test_rows_are_selected_everywhere():
    rows = some_batch().rows(torch.tensor([2, 0]))
    assert rows.ids == ("r2", "r0") and rows.words == ("w2", "w0")
    assert rows.companions.ids == ("c2", "c0") and rows.companions.index.tolist() == [12, 10]
    assert rows.index.tolist() == [2, 0] == rows.target.value.tolist()
    assert torch.equal(rows.streams["audio"].data, some_batch().streams["audio"].data[[2, 0]])
    assert rows.explanations["audio"].mask.shape == (2, 3)
    assert rows.dialogue.conversation.tolist() == [1, 0]
    assert len(rows) == 2


def test_to_moves_every_tensor():
    moved = some_batch().to("meta")
    tensors = [
        moved.index,
        moved.target.value,
        moved.streams["audio"].mask,
        moved.companions.index,
        moved.dialogue.turn,
    ]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.device.type == "meta" and moved.ids == some_batch().ids


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        some_batch().words = ()


def test_conversations_are_padded_in_turn_order_and_back():
    conversation, turn = torch.tensor([7, 3, 7, 3, 7]), torch.tensor([2, 0, 0, 5, 1])
    dialogue = Dialogue(conversation, turn, torch.zeros(5, dtype=torch.int64))
    rows = torch.arange(10.0).view(5, 2)
    grid, mask = dialogue.pad(rows)
    assert grid.shape == (2, 3, 2)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert grid[1, :, 0].tolist() == [4.0, 8.0, 0.0]  # conversation 7: turns 0, 1, 2 are rows 2, 4, 0
    assert grid[0, :2, 0].tolist() == [2.0, 6.0]
    assert torch.equal(dialogue.unpad(grid), rows)


def test_seeds_depend_on_seed_and_purpose_alone():
    assert derived_seed(1, "a", 2) == derived_seed(1, "a", 2)
    assert len({derived_seed(s, *p) for s in (1, 2) for p in (("a",), ("b",), ("a", 1), ("a", 2))}) == 8
    assert 0 <= derived_seed(3, "x") < 2**63
    assert torch.equal(torch.rand(3, generator=generator(1, "a")), torch.rand(3, generator=generator(1, "a")))
    seed_all(1, "a")
    first = torch.rand(3)
    seed_all(1, "a")
    assert torch.equal(torch.rand(3), first)


def test_tables_import_on_use_and_suggest():
    table = Table("thing", {"table": "moodal.core.registry:Table", "lost": "moodal.nowhere:Nothing"})
    assert table["table"] is Table
    assert list(table) == ["table", "lost"] and "lost" in table and len(table) == 2
    assert table.module("lost") == "moodal.nowhere"
    with pytest.raises(MoodalError, match=r"There is no thing 'tabel'; known: lost, table; did you mean 'table'\?"):
        table["tabel"]


def test_groups_hold_each_parameter_once():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    assert len(Group("all", net).parameters()) == 2
    assert Group("rest", net, without=(net[0].bias,)).parameters() == [net[0].weight]
    assert Group("one", net[0].bias).parameters() == [net[0].bias]
    assert Group("none", net, without=(net,)).parameters() == []


TEXT = StreamSpec("features", 4)


@pytest.mark.parametrize(
    "needs, spec, said",
    [
        (Needs(required=("vision",)), DataSpec({"text": TEXT}, Regression(-3, 3)), r"needs vision, .* \(it has text\)"),
        (
            Needs(modalities=("audio",)),
            DataSpec({"text": TEXT}, Regression(-3, 3)),
            r"reads audio, and this corpus has none",
        ),
        (
            Needs(text=("tokens",)),
            DataSpec({"text": TEXT}, Regression(-3, 3)),
            r"text as tokens, and this corpus gives features; set data.text.mode",
        ),
        (
            Needs(tasks=(Regression,)),
            DataSpec({"text": TEXT}, Classification(("a", "b"))),
            r"does Regression, and .* Classification",
        ),
    ],
)
def test_needs_that_are_not_met_are_a_sentence(needs, spec, said):
    with pytest.raises(MoodalError, match=said):
        needs.verify("m", spec)
    Needs().verify("m", spec)
