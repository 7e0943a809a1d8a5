"""The memory of the last step: what it gives back, for how long, and that nothing learns through it."""

from __future__ import annotations

import torch

from moodal.layers.memory import Remembered, StepMemory


def written(memory: StepMemory, rows: list[int], moment: int) -> Remembered:
    now = Remembered(torch.randn(len(rows), 2, requires_grad=True), torch.arange(len(rows)) - 1)
    memory.write(torch.tensor(rows), moment, now)
    return now


def test_it_gives_back_what_the_step_wrote_in_all_its_parts():
    memory = StepMemory(9, 2)
    first, second = written(memory, [4, 1], 3), written(memory, [7], 3)
    found = memory.at(3)
    assert torch.equal(found.vectors, torch.stack([first.vectors[1], first.vectors[0], second.vectors[0]]))
    assert found.groups.tolist() == [0, -1, -1]
    assert not found.vectors.requires_grad and not any(True for _ in memory.parameters())


def test_other_moments_find_nothing():
    memory = StepMemory(9, 2)
    written(memory, [0, 1], 3)
    written(memory, [1, 2], 4)
    assert [len(memory.at(moment).vectors) for moment in (1, 2, 3, 4, 5)] == [0, 0, 1, 2, 0]


def test_what_is_given_back_does_not_change_when_more_is_written():
    memory = StepMemory(3, 2)
    written(memory, [0], 1)
    found = memory.at(1)
    before = found.vectors.clone()
    written(memory, [0], 2)
    assert torch.equal(found.vectors, before)
