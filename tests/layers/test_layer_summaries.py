"""One vector for a sequence: the first real step, the mean, the last state of an LSTM."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moodal.core.batch import Stream
from moodal.layers.summaries import FirstStep, LastState, MeanStep

MASK = torch.tensor([[True, True, False, False], [False, True, True, False], [False] * 4])


def stream(mask: torch.Tensor = MASK) -> Stream:
    data = torch.randn(len(mask), mask.shape[1], 3, generator=torch.Generator().manual_seed(0))
    return Stream(data.masked_fill(~mask[..., None], 9.0), mask)


def test_first_and_mean_by_hand():
    given = stream()
    first, mean = FirstStep()(given), MeanStep()(given)
    assert torch.equal(first.vector, torch.stack([given.data[0, 0], given.data[1, 1], torch.zeros(3)]))
    torch.testing.assert_close(mean.vector[:2], torch.stack([given.data[0, :2].mean(0), given.data[1, 1:3].mean(0)]))
    assert first.present.tolist() == mean.present.tolist() == [True, True, False] and not mean.vector[2].any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_last_state_is_that_of_torch_on_the_real_steps_alone(bidirectional: bool):
    torch.manual_seed(1)
    block, given = LastState(3, 5, 4, bidirectional=bidirectional), stream()
    reference = nn.LSTM(3, 5, batch_first=True, bidirectional=bidirectional)
    state = {name: value for name, value in block.lstm.ahead[0].state_dict().items()}
    if bidirectional:
        state |= {f"{name}_reverse": value for name, value in block.lstm.back[0].state_dict().items()}
    reference.load_state_dict(state)
    found = block(given)
    for row, steps in ((0, slice(0, 2)), (1, slice(1, 3))):
        _, (last, _) = reference(given.data[row : row + 1, steps])
        wanted = block.out(last.transpose(0, 1).flatten(1))
        torch.testing.assert_close(found.vector[row : row + 1], wanted, atol=1e-6, rtol=0)
    assert not found.vector[2].any() and found.present.tolist() == [True, True, False]
