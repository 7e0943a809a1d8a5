"""Temporal alignment of two sequences: crossed gates over causal convolutions, and the alternatives of the ablation.

Shapes: N rows, T steps, D width, I inner width, K kernel. Each block takes two sequences (values, mask) and gives two
of one common length. A step that is not real enters as zero: behind maps without bias it then gates its partner with
SiLU(0) = 0, and only the partner's residual stays. Source: Rao et al., AAAI 2026, section 3 (temporal alignment).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.layers.attention import EPSILON
from moodal.layers.masks import pad_steps, zero_padding
from moodal.layers.transformer import Layer, Sequence


def common_length(first: Sequence, second: Sequence) -> tuple[Sequence, Sequence]:
    """Both sequences padded to the longer one's steps."""
    steps = max(first[0].shape[1], second[0].shape[1])
    return pad_steps(*first, steps), pad_steps(*second, steps)


class CausalConvolution(nn.Module):
    """Depth-wise convolution along time with left padding only: step t sees steps t - K + 1 to t."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        inside = nn.Conv1d(channels, channels, kernel, groups=channels)
        self.weight, self.bias = inside.weight, inside.bias  # (I, 1, K), (I,): nn.Conv1d's own start

    def forward(self, values: Tensor) -> Tensor:
        """(N, T, I) -> (N, T, I)."""
        channels, _, kernel = self.weight.shape
        before = F.pad(values.transpose(1, 2), (kernel - 1, 0))
        return F.conv1d(before, self.weight, self.bias, groups=channels).transpose(1, 2)


class _GatedStream(nn.Module):
    """One side of the gated alignment: norm, split into content and gate, convolution; later the way back."""

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = CausalConvolution(inner, kernel)
        self.leave = nn.Linear(inner, width, bias=False)

    def forward(self, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """(N, T, D) -> content (N, T, I) and gate (N, T, I), the gate 0 where the step is not real."""
        content, gate = self.enter(zero_padding(self.norm(sequence[0]), sequence[1])).chunk(2, dim=-1)
        return self.convolution(content), F.silu(gate)


class GatedAlignment(nn.Module):
    """x_a = leave(conv(content_a) * gate_v) + x_a, and the same with a and v exchanged."""

    def __init__(self, width: int, *, inner: int, kernel: int) -> None:
        super().__init__()
        self.audio = _GatedStream(width, inner, kernel)
        self.vision = _GatedStream(width, inner, kernel)

    def forward(self, audio: Sequence, vision: Sequence) -> tuple[Sequence, Sequence]:
        """(N, T_a, D), (N, T_v, D) -> both (N, max, D)."""
        audio, vision = common_length(audio, vision)
        audio_content, audio_gate = self.audio(audio)
        vision_content, vision_gate = self.vision(vision)
        new_audio = audio[0] + self.audio.leave(audio_content * vision_gate)
        new_vision = vision[0] + self.vision.leave(vision_content * audio_gate)
        return (new_audio, audio[1]), (new_vision, vision[1])


class NoAlignment(nn.Module):
    """The "temporal alignment -> concatenation" ablation: the sequences go on as they are."""

    def forward(self, audio: Sequence, vision: Sequence) -> tuple[Sequence, Sequence]:
        return audio, vision


class AttentionAlignment(nn.Module):
    """The "temporal cross-attention" ablation: each sequence attends to the other, then a feed-forward."""

    def __init__(self, width: int, *, heads: int, head_width: int, feed_forward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.audio = Layer(width, heads=heads, head_width=head_width, feed_forward=feed_forward, dropout=dropout)
        self.vision = Layer(width, heads=heads, head_width=head_width, feed_forward=feed_forward, dropout=dropout)

    def forward(self, audio: Sequence, vision: Sequence) -> tuple[Sequence, Sequence]:
        """(N, T_a, D), (N, T_v, D) -> the same shapes. Each row has a real step in both."""
        new_audio = self.audio(audio[0], vision[0], mask=vision[1])
        new_vision = self.vision(vision[0], audio[0], mask=audio[1])
        return (new_audio, audio[1]), (new_vision, vision[1])


class MambaAlignment(nn.Module):
    """The "Mamba" ablation: a selective state-space block on each sequence."""

    def __init__(self, width: int, *, inner: int, kernel: int) -> None:
        super().__init__()
        self.audio = Mamba(width, inner=inner, kernel=kernel)
        self.vision = Mamba(width, inner=inner, kernel=kernel)

    def forward(self, audio: Sequence, vision: Sequence) -> tuple[Sequence, Sequence]:
        """(N, T_a, D), (N, T_v, D) -> the same shapes."""
        return (self.audio(audio), audio[1]), (self.vision(vision), vision[1])


class Mamba(nn.Module):
    """Selective state-space block with pre-norm and residual. Source: Gu and Dao, COLM 2024, algorithm 2, figure 3.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t and y_t = C_t h_t + skip * x_t per channel, with dt, B and C read from x.
    """

    def __init__(self, width: int, *, inner: int, kernel: int, state: int = 16) -> None:
        super().__init__()
        self.state, self.rank = state, max(width // 16, 1)
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = CausalConvolution(inner, kernel)
        self.select = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.interval = nn.Linear(self.rank, inner)
        self.decay = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))  # A = -exp(decay)
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave = nn.Linear(inner, width, bias=False)
        # Intervals start log-uniform in [0.001, 0.1]: softplus of the bias gives them back.
        start = torch.exp(torch.empty(inner).uniform_(-6.9, -2.3))
        self.interval.bias.data.copy_(start + torch.log(-torch.expm1(-start)))

    def forward(self, sequence: Sequence) -> Tensor:
        """(N, T, D), mask -> (N, T, D). A step that is not real leaves the state as it was."""
        values, mask = sequence
        content, gate = self.enter(zero_padding(self.norm(values), mask)).chunk(2, dim=-1)
        content = F.silu(self.convolution(content))
        mixed = selective_scan(content, *self.selection(content, mask)) + self.skip * content
        return values + self.leave(mixed * F.silu(gate))

    def selection(self, content: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Interval (N, T, I), A (I, S), B (N, T, S) and C (N, T, S) for ``content`` (N, T, I)."""
        interval, enter, leave = self.select(content).split([self.rank, self.state, self.state], dim=-1)
        interval = zero_padding(F.softplus(self.interval(interval)), mask)
        return interval, -self.decay.exp(), enter, leave


def selective_scan(content: Tensor, interval: Tensor, matrix: Tensor, enter: Tensor, leave: Tensor) -> Tensor:
    """y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t: (N, T, I) -> (N, T, I).

    ``interval`` (N, T, I), ``matrix`` A (I, S), ``enter`` B and ``leave`` C (N, T, S). The recurrence is associative: it
    takes log2(T) doublings over all steps at once instead of T steps, and every factor is at most 1.
    """
    kept = torch.exp(interval.unsqueeze(-1) * matrix)  # (N, T, I, S)
    state = (interval * content).unsqueeze(-1) * enter.unsqueeze(2)
    reach = 1
    while reach < content.shape[1]:
        state = state + F.pad(kept[:, reach:] * state[:, :-reach], (0, 0, 0, 0, reach, 0))
        kept = torch.cat([kept[:, :reach], kept[:, reach:] * kept[:, :-reach]], dim=1)
        reach *= 2
    return torch.einsum("ntis,nts->nti", state, leave)
