"""Dropout: the share dropped, the mean kept, the same bits from the same seed, nothing in evaluation."""

from __future__ import annotations

import pytest
import torch

from moodal.layers.dropout import Dropout, drop


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_kept(share: float):
    torch.manual_seed(0)
    found = drop(torch.ones(1000, 997), share)
    torch.testing.assert_close((found == 0).double().mean().item(), share, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.double().mean().item(), 1.0, atol=1e-2, rtol=0)
    assert len(found.unique()) == 2


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 5, 8, 997])
def test_neighbours_are_dropped_independently(offset: int):
    torch.manual_seed(0)
    kept = (drop(torch.ones(1000 * 997), 0.3) > 0).double() - 0.7
    assert (kept[offset:] * kept[:-offset]).mean().abs() < 1e-3  # a deviation is 0.21 / 1000


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0, 4), (2, 3, 5)])
def test_any_shape(shape: tuple[int, ...]):
    assert drop(torch.ones(shape), 0.5).shape == shape


def test_values_that_lie_in_another_order():
    values = torch.arange(1.0, 13.0).view(3, 4).mT
    found = drop(values, 0.5)
    assert set((found / values).unique().tolist()) <= {0.0, 2.0}


def test_a_seed_gives_the_same_bits_and_the_next_call_others():
    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [drop(torch.ones(50, 51), 0.4) for _ in range(2)]

    first, second = drawn(), drawn()
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(*first)


def test_a_saved_state_of_the_generator_continues():
    torch.manual_seed(4)
    state = torch.get_rng_state()
    wanted = drop(torch.ones(100), 0.5)
    torch.set_rng_state(state)
    assert torch.equal(drop(torch.ones(100), 0.5), wanted)


def test_the_gradient_is_that_of_what_was_kept():
    values = torch.randn(20, 30, requires_grad=True)
    found = drop(values, 0.25)
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach() / values.detach())


def test_nothing_is_dropped_in_evaluation_or_with_a_share_of_zero():
    values = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0).train()(values), values)
    assert torch.equal(drop(values, 0.0), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_keep_their_type(dtype: torch.dtype):
    assert drop(torch.ones(8, dtype=dtype), 0.5).dtype == dtype


def test_a_compiled_module_drops_as_well():
    torch.manual_seed(0)
    module = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    share = (module(torch.ones(100, 100)) == 0).double().mean().item()
    torch.testing.assert_close(share, 0.5, atol=0.03, rtol=0)
