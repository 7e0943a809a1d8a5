"""The released LiDAR-camera objective: its two totals, ignored points, who teaches whom."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moodal.losses.distillation import Measure
from moodal.losses.segmentation import segmentation_losses

LABEL = torch.tensor([3, 0, 1, 2, 0, 1, 3])


def logits() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(7, 4, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]


def test_parts_by_the_library():
    points, pixels, code = given = logits()
    parts = segmentation_losses(*given, LABEL)
    kept = LABEL != 0
    entropies = [F.cross_entropy(x, LABEL, ignore_index=0) for x in given]
    taught = [
        F.kl_div(points[kept].log_softmax(1), student[kept].softmax(1), reduction="batchmean")
        for student in (code, pixels)
    ]
    torch.testing.assert_close(torch.stack(parts[:5]), torch.stack([*entropies, *taught]))
    torch.testing.assert_close(parts.total, (sum(entropies) + taught[0]) / 4)
    torch.testing.assert_close(parts.baseline, (entropies[0] + entropies[1]) / 2)


def test_ignored_points_change_no_loss():
    given = logits()
    changed = [x.detach().masked_fill((LABEL == 0)[:, None], 30.0) + torch.arange(4) for x in given]
    shifted = [x.detach() + torch.arange(4) for x in given]
    for ours, theirs in zip(segmentation_losses(*changed, LABEL), segmentation_losses(*shifted, LABEL)):
        torch.testing.assert_close(ours, theirs)


def test_the_point_branch_is_taught_by_nobody():
    given = logits()
    for measure in (Measure(), Measure(direction="student_first")):
        parts = segmentation_losses(*given, LABEL, measure=measure)
        taught = parts.sufficiency + parts.consistency
        slopes = torch.autograd.grad(taught, given, retain_graph=True, allow_unused=True)
        assert slopes[0] is None and slopes[1].abs().max() > 0 and slopes[2].abs().max() > 0
        own = torch.autograd.grad(parts.points, given[0], retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(parts.total, given[0])[0], own / 4)
