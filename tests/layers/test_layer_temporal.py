"""Temporal alignment: causal, blind to padding, and its scan equal to the recurrence taken step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.temporal import (
    AttentionAlignment,
    CausalConvolution,
    GatedAlignment,
    MambaAlignment,
    NoAlignment,
    selective_scan,
)

WIDTH = 6


def blocks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "gated": GatedAlignment(WIDTH, inner=8, kernel=4),
        "mamba": MambaAlignment(WIDTH, inner=8, kernel=4),
        "cross_attention": AttentionAlignment(WIDTH, heads=2, head_width=3, feed_forward=5),
        "concatenation": NoAlignment(),
    }


def full(steps: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, steps, WIDTH), torch.ones(rows, steps, dtype=torch.bool)


def test_convolution_equals_its_definition():
    block = CausalConvolution(3, 4)
    x = torch.randn(2, 5, 3)
    expected = torch.zeros(2, 5, 3)
    for t in range(5):
        for k in range(4):
            if t - 3 + k >= 0:
                expected[:, t] += block.weight[:, 0, k] * x[:, t - 3 + k]
    torch.testing.assert_close(block(x), expected + block.bias)


@pytest.mark.parametrize("name", ["gated", "mamba"])
def test_a_changed_step_alters_nothing_before_it(name: str):
    block = blocks()[name]
    audio, vision = full(9), full(9)
    before = block(audio, vision)
    changed = audio[0].clone()
    changed[:, 5] += 1.0
    after = block((changed, audio[1]), vision)
    for (old, _), (new, _) in zip(before, after):
        torch.testing.assert_close(old[:, :5], new[:, :5], rtol=0, atol=0)
    assert not torch.allclose(before[0][0][:, 5:], after[0][0][:, 5:])


def test_gates_cross_over():
    block = blocks()["gated"]
    audio, vision = full(9), full(9)
    (old_audio, _), _ = block(audio, vision)
    (new_audio, _), _ = block(audio, full(9))
    assert not torch.allclose(old_audio, new_audio)  # the vision gate decides what passes of the audio


def test_only_the_residual_stays_where_the_partner_has_no_step():
    block = blocks()["gated"]
    audio, vision = full(9), full(4)
    (values, mask), (_, vision_mask) = block(audio, vision)
    torch.testing.assert_close(values[:, 4:], audio[0][:, 4:])
    assert mask.all() and vision_mask.sum() == 8


@pytest.mark.parametrize("name", ["gated", "mamba", "cross_attention", "concatenation"])
def test_padding_changes_nothing(name: str):
    block = blocks()[name]
    audio, vision = full(5), full(7)
    short = block(audio, vision)
    filler = torch.randn(2, 3, WIDTH)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    longer = block(*((torch.cat([x, filler], 1), torch.cat([m, nothing], 1)) for x, m in (audio, vision)))
    for (old, seen), (new, _) in zip(short, longer):
        torch.testing.assert_close(old[seen], new[:, : old.shape[1]][seen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 33])
def test_scan_equals_the_recurrence_step_by_step(steps: int):
    torch.manual_seed(steps)
    content, interval = torch.randn(2, steps, 5), F.softplus(torch.randn(2, steps, 5))
    matrix, enter, leave = -torch.rand(5, 3) * 4, torch.randn(2, steps, 3), torch.randn(2, steps, 3)
    arguments = [x.requires_grad_() for x in (content, interval, matrix, enter, leave)]
    state, outputs = torch.zeros(2, 5, 3), []
    for t in range(steps):
        state = torch.exp(interval[:, t, :, None] * matrix) * state
        state = state + (interval[:, t] * content[:, t])[..., None] * enter[:, t, None]
        outputs.append((state * leave[:, t, None]).sum(dim=-1))
    expected, found = torch.stack(outputs, dim=1), selective_scan(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        *(torch.autograd.grad(y.sin().sum(), arguments, materialize_grads=True) for y in (found, expected))
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
