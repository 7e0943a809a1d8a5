"""Image features gated into point features. Shapes: N points, C_i image width, C_p point width.

Source: Tian et al., TPAMI 2024, released LiDAR-camera code (the fusion after each down-sampling stage).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointFusion(nn.Module):
    """[p ; g ReLU(BN(W i))] -> linear, BN, ReLU, with one gate per point:

    g = sigmoid(w·tanh(W1 ReLU(BN(i)) + W2 p)), inside it a quarter of the points' width. The image features i are
    detached unless ``detach`` is off, so that what is learnt on the points does not reach the image branch.
    Statistics are of all points of the batch, as published.
    """

    def __init__(self, image: int, point: int, out: int, *, detach: bool = True) -> None:
        super().__init__()
        self.detach = detach
        self.value, self.value_norm = nn.Linear(image, point), nn.BatchNorm1d(point)
        self.image_norm = nn.BatchNorm1d(image)
        self.from_image, self.from_point = nn.Linear(image, point // 4), nn.Linear(point, point // 4)
        self.gate = nn.Linear(point // 4, 1)
        self.join, self.join_norm = nn.Linear(2 * point, out), nn.BatchNorm1d(out)

    def forward(self, points: Tensor, pixels: Tensor) -> Tensor:
        """(N, C_p) points and (N, C_i) image features at them -> (N, out)."""
        pixels = pixels.detach() if self.detach else pixels
        seen = self.from_image(F.relu(self.image_norm(pixels)))
        gate = torch.sigmoid(self.gate(torch.tanh(seen + self.from_point(points))))
        value = F.relu(self.value_norm(self.value(pixels))) * gate
        return F.relu(self.join_norm(self.join(torch.cat([points, value], dim=-1))))
