"""Bottleneck heads and the fusion of image into points: sizes as published, gradients that stop where they should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moodal.core.spec import Classification, Regression
from moodal.layers.distillation import CodeHead, ViewHeads
from moodal.layers.points import PointFusion

CLASSES = Classification(tuple(map(str, range(17))))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_parameters_of_the_published_bottleneck(norm: str):
    head = CodeHead(61, CLASSES, hidden=48, code=32, norm=norm)
    parts = (head.bottleneck.first, head.bottleneck.first_norm, head.bottleneck.second, head.bottleneck.second_norm)
    counts = [sum(p.numel() for p in part.parameters()) for part in (*parts, head.classifier)]
    assert counts == [2976, 96, 1568, 64, 561] and sum(counts) == 5265


def test_shapes_by_task_and_order_of_views():
    for task, ending in ((CLASSES, (17,)), (Regression(-1, 1), ())):
        heads = ViewHeads({"voice": 6, "face": 4}, task, hidden=5, code=3)
        given = {"face": torch.randn(7, 4), "voice": torch.randn(7, 6)}
        views = heads(given)
        assert heads.names == ("voice", "face")
        assert views.observations.shape == views.codes.shape == (2, 7, *ending) and views.vectors.shape == (2, 7, 3)
        outputs, code = heads.coders["face"](given["face"])
        assert views.vectors[1].equal(code) and views.codes[1].flatten().equal(outputs.flatten())


def test_a_row_does_not_depend_on_its_mates_unless_the_norm_is_the_published_one():
    rows = torch.randn(8, 6)
    for norm, alike in (("layer", True), ("batch", False)):
        torch.manual_seed(0)
        head = CodeHead(6, CLASSES, hidden=5, code=3, norm=norm).train()
        assert torch.allclose(head(rows)[1][:4], head(rows[:4])[1], atol=1e-6) == alike


@pytest.mark.parametrize("detach", [True, False])
def test_what_is_learnt_on_points_reaches_the_image_branch_only_if_it_may(detach: bool):
    torch.manual_seed(0)
    stem, fusion = nn.Linear(5, 8), PointFusion(8, 12, 12, detach=detach)
    points, pixels = torch.randn(20, 12, requires_grad=True), stem(torch.randn(20, 5))
    fusion(points, pixels).square().sum().backward()
    assert points.grad.abs().max() > 0
    assert (stem.weight.grad is None) == detach


def test_a_shut_gate_leaves_the_points_alone():
    torch.manual_seed(0)
    fusion, points = PointFusion(8, 12, 12).eval(), torch.randn(20, 12)
    nn.init.constant_(fusion.gate.bias, -1e4)
    assert fusion(points, torch.randn(20, 8)).equal(fusion(points, torch.randn(20, 8)))
