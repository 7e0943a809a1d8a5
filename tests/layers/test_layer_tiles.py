"""Attention in tiles against attention written out, with the very weights that were dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moodal.layers import tiles
from moodal.layers.attention import scaled_attention
from moodal.layers.tiles import dropped_attention

#: more than one tile of queries, and more than one of rows.
ROWS, HEADS, STEPS, KEYS, WIDTH = 6, 4, 150, 180, 5


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(ROWS, HEADS, steps, WIDTH, dtype=dtype) for steps in (STEPS, KEYS, KEYS)]


def causal(rows: int) -> Tensor:
    """Row n sees keys up to its step plus 10 n."""
    seen = torch.stack([torch.ones(STEPS, KEYS, dtype=torch.bool).tril(10 * n) for n in range(rows)])
    return torch.zeros(rows, 1, STEPS, KEYS).masked_fill(~seen[:, None], -torch.inf)


def mask(name: str) -> Tensor | None:
    padded = torch.zeros(ROWS, 1, 1, KEYS)
    padded[1, ..., 100:] = -torch.inf
    return {"none": None, "shared": causal(1), "by row": causal(ROWS), "keys": padded}[name]


def drawn(query: Tensor, key: Tensor, hidden: Tensor | None, share: float) -> Tensor:
    """(N, H, T, S) what is kept: the weights left over when every key has a value of its own."""
    own = torch.eye(key.shape[2], dtype=key.dtype).expand(*key.shape[:3], -1)
    torch.manual_seed(3)
    return (dropped_attention(query, key, own, share=share, mask=hidden) > 0).to(query.dtype)


@pytest.mark.parametrize("name", ["none", "shared", "by row", "keys"])
def test_values_and_gradients_are_those_of_dropped_weights(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "_WEIGHTS", 2**16)
    q, k, v = (x.requires_grad_() for x in inputs(torch.float64))
    hidden = mask(name)
    kept = drawn(q.detach(), k.detach(), hidden, 0.3)
    weights = (q @ k.mT if hidden is None else q @ k.mT + hidden).softmax(dim=-1)
    scale = 65536 / (65536 - round(0.3 * 65536))
    wanted = (weights * kept * scale) @ v
    torch.manual_seed(3)
    found = dropped_attention(q, k, v, share=0.3, mask=hidden)
    torch.testing.assert_close(found, wanted)
    cotangent = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), (q, k, v)) for y in (found, wanted))
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


def test_the_share_is_dropped_everywhere_alike():
    q, k, _ = inputs()
    kept = drawn(q, k, None, 0.1)
    share = 1 - kept.mean(dim=-1)
    assert abs(float(share.mean()) - 0.1) < 4 * (0.09 / kept.numel()) ** 0.5
    assert float(share.std()) == pytest.approx((0.09 / KEYS) ** 0.5, rel=0.1)  # rows of weights differ as coins do


def test_the_generator_of_torch_decides():
    q, k, v = inputs()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found += [dropped_attention(q, k, v, share=0.5), dropped_attention(q, k, v, share=0.5)]
    assert found[0].equal(found[2]) and found[1].equal(found[3])
    assert not found[0].equal(found[1]) and not found[0].equal(found[4])


@pytest.mark.parametrize("name", ["none", "shared", "by row", "keys"])
def test_attention_takes_tiles_only_to_drop(name: str):
    """Nearly nothing dropped in tiles, nothing dropped in the fused kernel: the same result."""
    q, k, v = inputs()
    torch.testing.assert_close(
        scaled_attention(q, k, v, mask(name), dropout=1e-9), scaled_attention(q, k, v, mask(name)), atol=1e-5, rtol=1e-4
    )
