"""Blocks of RGB-infrared re-identification: pictures, grey pictures, channel attention, observation and bottleneck.

Shapes  N rows, H x W pixels, D width of an observation v, K width of a representation z, C identities.
Source  Tian et al., CVPR 2021, released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Stream
from moodal.core.errors import check
from moodal.layers.dropout import Dropout
from moodal.layers.resnet import ResNet

#: mean and deviation of ImageNet's red, green and blue, of values from 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: how much red, green and blue count for brightness (ITU-R BT.601, as released).
BRIGHTNESS = (0.2989, 0.5870, 0.1140)


class Pictures(nn.Module):
    """A stream of pictures (N, 1, 3, H, W) of bytes as standardised values (N, 3, H, W), in training mirrored at random.

    ``mirror``: chance that a row is mirrored left to right in training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *, mirror: float = 0.5) -> None:
        super().__init__()
        self.mirror = mirror
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, stream: Stream) -> Tensor:
        """One picture a row; a row without a picture is black."""
        pixels = (stream.data[:, 0].float() - self.mean) / self.deviation
        if not self.training or self.mirror == 0:
            return pixels
        turned = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < self.mirror
        return torch.where(turned, pixels.flip(-1), pixels)


def grey(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W): brightness. As released it is taken of the standardised values."""
    return sum(share * colour for share, colour in zip(BRIGHTNESS, pixels.split(1, dim=1)))  # type: ignore[return-value]


class ChannelAttention(nn.Module):
    """gamma A X + X with A = softmax(-E), E = X X^T over pixels: unlike channels inform each other.

    gamma is one number that starts at 0, so the block starts as the identity. ``reference``: softmax(rowmax(E) - E) as
    released, the same numbers for several times the work, since a softmax does not see what is added to a whole row.
    """

    def __init__(self, *, reference: bool = False) -> None:
        super().__init__()
        self.reference = reference
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return self.gamma * self.mixed(maps.flatten(2)).reshape(maps.shape) + maps

    def mixed(self, flat: Tensor) -> Tensor:
        """A X of (N, channels, pixels). Never a whole A where there are fewer pixels than channels (measured: up to 4 times as fast)."""
        if self.reference:
            energy = flat @ flat.mT
            return (energy.amax(dim=-1, keepdim=True) - energy).softmax(dim=-1) @ flat
        if flat.shape[2] < flat.shape[1]:
            heads = flat.unsqueeze(1)
            return F.scaled_dot_product_attention(-heads, heads, heads, scale=1.0).squeeze(1)
        return (-flat @ flat.mT).softmax(dim=-1) @ flat


class Neck(nn.Module):
    """Batch normalisation with a learnt scale and no shift, so that the classifier's planes go through the origin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, vector: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.norm(vector) * self.scale


class Observer(nn.Module):
    """Pictures to observations: a residual network, mean over its map, neck, and a classifier on that.

    Channel attention stands before every stage of the network but the first; ``reference``: as released.
    """

    def __init__(self, identities: int, *, blocks: Sequence[int], width: int, reference: bool = False) -> None:
        super().__init__()
        self.network = ResNet(blocks=blocks, width=width, last_stride=1)
        self.attention = nn.ModuleList(ChannelAttention(reference=reference) for _ in self.network.stages[1:])
        self.neck = Neck(self.network.width)
        self.classifier = small_linear(self.network.width, identities)

    @property
    def width(self) -> int:
        """D."""
        return self.network.width

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> logits (N, C), observation (N, D)."""
        maps = self.network.stages[0](self.network.stem(pixels))
        for attention, stage in zip(self.attention, self.network.stages[1:]):
            maps = stage(attention(maps))
        observation = self.neck(maps.mean(dim=(2, 3)))
        return self.classifier(observation), observation


class Compression(nn.Module):
    """Observations to representations: linear maps with batch norm and ReLU between, and a classifier on the result.

    Deterministic, in spite of what it stands for: no noise and no prior, as released.
    """

    def __init__(self, width: int, identities: int, *, hidden: Sequence[int], code: int, dropout: float) -> None:
        super().__init__()
        check(code >= 2, f"The representation is {code} wide; 2 or more are needed.")
        sizes, parts = (width, *hidden), list[nn.Module]()
        for size, following in pairwise(sizes):
            parts += [_linear(size, following), _norm(following), nn.ReLU()]
        self.compress = nn.Sequential(*parts, _linear(sizes[-1], code))
        self.first, self.norm = small_linear(code, code // 2), nn.BatchNorm1d(code // 2)
        self.dropout = Dropout(dropout)
        self.second = small_linear(code // 2, identities)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logits (N, C), representation (N, K)."""
        code = self.compress(observation)
        inner = F.leaky_relu(self.norm(self.first(code)), 0.1)
        return self.second(self.dropout(inner)), code


def small_linear(width: int, outputs: int) -> nn.Linear:
    """A linear map that starts near zero: weights of deviation 0.001, no shift."""
    layer = nn.Linear(width, outputs)
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)
    return layer


def _linear(width: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(width, outputs)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    nn.init.zeros_(layer.bias)
    return layer


def _norm(width: int) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(width)
    nn.init.normal_(layer.weight, 1.0, 0.02)
    return layer


def balanced_order(identity: Tensor, modality: Tensor, *, each: int, generator: torch.Generator) -> Tensor:
    """Rows in blocks of one identity, ``each`` of either modality taking turns: 0, 1, 0, 1, ...

    ``identity``, ``modality`` (0 or 1): (N,). Every identity that has both modalities comes once, in random order; its
    pictures are drawn without repetition as far as it has enough, and otherwise repeated as evenly as can be. The
    result is (identities * 2 * each,) int64. Raises ``MoodalError`` if no identity has both modalities.
    """
    block = 2 * identity + modality
    draw = torch.rand(len(block), generator=generator).argsort()
    by_block = draw[block[draw].argsort(stable=True)]  # grouped by block, in random order within
    count = torch.bincount(block, minlength=2 * (int(identity.max()) + 1)).view(-1, 2)
    start = (count.flatten().cumsum(0) - count.flatten()).view(-1, 2)
    chosen = torch.nonzero((count > 0).all(dim=1))[:, 0]
    check(len(chosen) > 0, "No identity of the training split has pictures of both modalities; see the corpus's lists.")
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    turn = torch.arange(each)[None, :, None]
    place = start[chosen][:, None, :] + turn % count[chosen][:, None, :]
    return by_block[place.flatten()]
