"""Text-routed experts: a router that chooses experts per row, and experts evaluated as batched products.

Shapes: N rows, T steps, D width, E experts, k chosen, F hidden width of an expert. Shapes never depend on values, no
step waits for the host. Source: Rao et al., AAAI 2026, section 3 (text-routed sparse mixture); noisy top-k: Shazeer et
al., ICLR 2017; balance loss: Fedus et al., JMLR 2022, eq. 4-6; router z-loss: Zoph et al., 2022, eq. 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.attention import uniform_
from moodal.layers.dropout import Dropout

#: Up to so many steps a row, running every expert is cheaper than copying the weights of the chosen ones.
_FEW = 8


class Routing(NamedTuple):
    """What a router decided for N rows."""

    logits: Tensor  # (N, E) before noise
    gates: Tensor  # (N, E) softmax over the chosen logits, 0 elsewhere
    experts: Tensor  # (N, k) int64 chosen experts, best first
    kept: Tensor  # (N, E) bool: chosen and within the expert's capacity
    weights: Tensor  # (N, k) gates of ``experts``, 0 where the capacity dropped the row


class Router(nn.Module):
    """Linear logits with learnt noise in training, the ``top_k`` largest kept, softmax over those."""

    def __init__(self, width: int, *, experts: int, top_k: int, noise: bool = True) -> None:
        super().__init__()
        self.top_k, self.noisy = top_k, noise
        self.logits = nn.Linear(width, experts)
        self.noise = nn.Linear(width, experts)

    def forward(self, condition: Tensor, *, capacity: float | None = None) -> Routing:
        """(N, D) -> decisions. ``capacity``: each expert takes max(int(N k / E * capacity), 1) rows; None: all."""
        logits = self.logits(condition)
        scores = logits
        if self.noisy and self.training:
            scores = logits + torch.randn_like(logits) * F.softplus(self.noise(condition))
        best, experts = scores.topk(self.top_k, dim=-1)
        weights = best.softmax(dim=-1)
        gates = weights.new_zeros(logits.shape).scatter(-1, experts, weights)
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, experts, True)
        if capacity is not None:
            kept = kept & (kept.cumsum(dim=0) <= self._places(len(logits), capacity))
            # Dropped, and the remaining gates are not renormalised: the published rule.
            weights = weights * kept.gather(-1, experts)
        return Routing(logits, gates, experts, kept, weights)

    def _places(self, rows: int, capacity: float) -> int:
        return max(int(rows * self.top_k / self.logits.out_features * capacity), 1)


class Experts(nn.Module):
    """E feed-forwards D -> F -> D; each row goes through its k chosen ones, outputs summed with the gate weights."""

    def __init__(self, width: int, *, hidden: int, experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(experts, hidden, width))
        self.first_bias = nn.Parameter(torch.empty(experts, hidden))
        self.second = nn.Parameter(torch.empty(experts, hidden, width))  # transposed: chosen ones lie end to end
        self.second_bias = nn.Parameter(torch.empty(experts, width))
        self.dropout = Dropout(dropout)
        for tensor, fan_in in (
            (self.first, width),
            (self.first_bias, width),
            (self.second, hidden),
            (self.second_bias, hidden),
        ):
            uniform_(tensor.data, fan_in)

    def forward(self, values: Tensor, routing: Routing) -> Tensor:
        """(N, T, D) -> (N, T, D). The k chosen experts of a row are one feed-forward of hidden width k F.

        Weights are chosen by a product with one-hot rows, which also puts the gate into the second map: its backward
        pass is a product too, always in the same order, where an indexed sum is slower and on a GPU not repeatable.
        """
        count, _, width = self.first.shape
        if values.shape[1] <= _FEW:
            return self._all(values, routing)
        choice = torch.zeros(*routing.experts.shape, count, dtype=values.dtype, device=values.device)
        choice = choice.scatter(-1, routing.experts.unsqueeze(-1), 1.0)  # (N, k, E)
        share = choice * routing.weights.unsqueeze(-1)
        first = (choice.flatten(0, 1) @ self.first.flatten(1)).view(len(values), -1, width)  # (N, k F, D)
        second = (share.flatten(0, 1) @ self.second.flatten(1)).view(len(values), -1, width)
        bias = (choice @ self.first_bias).flatten(1).unsqueeze(1)  # (N, 1, k F)
        shift = (share.sum(dim=1) @ self.second_bias).unsqueeze(1)  # (N, 1, D)
        inside = self.dropout(F.gelu(torch.baddbmm(bias, values, first.transpose(1, 2))))
        return self.dropout(torch.baddbmm(shift, inside, second))

    def _all(self, values: Tensor, routing: Routing) -> Tensor:
        """The same for few steps: all experts, those not chosen with weight 0, instead of copies of the chosen ones."""
        count, hidden, _ = self.first.shape
        share = torch.zeros_like(routing.logits).scatter(-1, routing.experts, routing.weights.to(routing.logits.dtype))
        inside = self.dropout(F.gelu(F.linear(values, self.first.flatten(0, 1), self.first_bias.flatten())))
        weighted = inside.unflatten(-1, (count, hidden)) * share[:, None, :, None]
        return self.dropout(weighted.flatten(2) @ self.second.flatten(0, 1) + (share @ self.second_bias).unsqueeze(1))


def balance_loss(routing: Routing) -> Tensor:
    """E * sum over experts of (share of choices) * (mean probability): 1 when the load is even. Differentiable."""
    experts = routing.logits.shape[1]
    chosen = F.one_hot(routing.experts, experts).sum(dim=1).to(routing.logits.dtype)
    share = chosen.mean(dim=0) / routing.experts.shape[1]
    return experts * (share * routing.logits.softmax(dim=-1).mean(dim=0)).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """Mean over rows of log-sum-exp of the logits, squared: keeps the router's logits small."""
    return routing.logits.logsumexp(dim=-1).square().mean()
