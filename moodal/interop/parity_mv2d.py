"""MV2D beside its official code: segmentation losses and their gradients, schedule, IoU, bottleneck and fusion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moodal.core.errors import DataError
from moodal.core.spec import Classification
from moodal.interop.blocks import compare_block, linear_pieces, norm_pieces
from moodal.interop.loss_cases import compare_loss_case, leaves
from moodal.interop.parity import Case, Quantity, compare, compare_number, read_case
from moodal.layers.distillation import CodeHead
from moodal.layers.points import PointFusion
from moodal.losses.segmentation import SegmentationLosses, segmentation_losses
from moodal.metrics.segmentation import class_ious, mean_iou

#: Allowed of plain numbers (schedule factors, IoU), in double precision on both sides.
EXACT = {"absolute": 1e-9, "relative": 1e-9}


def check_case(path: Path) -> list[Quantity]:
    """Compare one case of MV2D: modules with weights, or per-point logits. Raises ``DataError`` for another kind."""
    case = read_case(path)
    if case.state:
        return _modules(case)
    if {"x_vox", "x_pix", "vib_out", "label"} <= set(case.inputs):
        return _losses(case)
    raise DataError(f"{path.name} holds neither weights nor per-point logits; a case of MV2D holds one of them.")


def rate_factor(step: int, *, epochs: int, batch: int, devices: int, size: int) -> float:
    """Factor of the base rate at ``step`` (from 0) of the released segmentation training, ``batch`` rows per device.

    Linear warm-up over 1000 // devices steps, none with one device, then half a cosine over as many steps as all epochs
    have: the warm-up does not shorten it, so training ends before the factor is 0.
    """
    warm = 0 if devices == 1 else 1000 // devices
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (epochs * math.ceil(size / (batch * devices)))))


# ---- losses ----------------------------------------------------------------------------------------------------

_LOSSES: Mapping[str, Callable[[SegmentationLosses], Tensor]] = {
    "predict_vox": lambda parts: parts.points,
    "predict_pix": lambda parts: parts.pixels,
    "predict_vib": lambda parts: parts.code,
    "vcd_loss": lambda parts: parts.consistency,
    "vsd_loss": lambda parts: parts.sufficiency,
    "total_as_coded": lambda parts: parts.total,
    "baseline": lambda parts: parts.baseline,
}


def _losses(case: Case) -> list[Quantity]:
    logits = leaves(case.inputs)
    ignored = case.facts["config"]["ignore_index"]
    parts = segmentation_losses(
        logits["x_vox"], logits["x_pix"], logits["vib_out"], case.inputs["label"], ignored=ignored
    )
    losses = {name: pick(parts) for name, pick in _LOSSES.items()}
    values = case.facts.get("values", {})
    return [*compare_loss_case(case, losses, logits), *_schedule(values), *_ious(case, values)]


def _schedule(values: Mapping[str, Any]) -> list[Quantity]:
    """The factors of the case, by number of devices and step."""
    given = values.get("schedule_setting", {})
    found = []
    for name, factors in values.get("schedule_factor_at_iteration", {}).items():
        setting = {
            "epochs": given["epochs"],
            "batch": given["batch_per_device"],
            "size": given["training_size"],
            "devices": int(name.partition("_")[0]),
        }
        for step, theirs in factors.items():
            ours = rate_factor(int(step), **setting)
            found.append(compare_number(f"schedule.{name}.{step}", ours, theirs, **EXACT))
    return found


def _ious(case: Case, values: Mapping[str, Any]) -> list[Quantity]:
    """IoU of the point branch: a class without a true point counts as 1, as released."""
    stored = values.get("iou_of_x_vox")
    if stored is None:
        return []
    config, logits = case.facts["config"], case.inputs["x_vox"]
    ious = class_ious(
        logits.numpy(), case.inputs["label"].numpy(), classes=logits.shape[1], ignored=config["ignore_index"]
    )
    found = [compare_number("iou.mean", 100 * mean_iou(ious, absent="one"), stored["mean_iou_percent"], **EXACT)]
    theirs = torch.tensor(stored["ious_by_class_without_ignored"], dtype=torch.float64)
    filled = torch.from_numpy(ious).nan_to_num(1.0)
    return [*found, compare("iou.by_class", filled, theirs, {"outputs": EXACT["absolute"]})]


# ---- modules ---------------------------------------------------------------------------------------------------


class _Modules(nn.Module):
    """The bottleneck with its head, and the fusion of one stage."""

    def __init__(self, config: Mapping[str, Any], hidden: int) -> None:
        super().__init__()
        task = Classification(tuple(map(str, range(config["classes"]))))
        self.coder = CodeHead(config["features"], task, hidden=hidden, code=config["z"], norm="batch")
        self.fusion = PointFusion(config["image"], config["point"], config["out"])


def _modules(case: Case) -> list[Quantity]:
    block = _Modules(case.facts["config"], len(case.state["vib.bottleneck.model.0.bias"]))

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, code = block.coder(inputs["v"])
        return {"z": code, "z_logits": logits, "fused": block.fusion(inputs["points"], inputs["pixels"])}

    found = compare_block(case, block, _PIECES, run)
    count = case.facts["config"].get("parameters_vib")
    if count is not None:
        own = sum(parameter.numel() for parameter in block.coder.parameters())
        found.append(compare_number("parameters_vib", own, count, absolute=0.0, relative=0.0))
    return found


_PIECES = [
    *linear_pieces("vib.bottleneck.model.0", "coder.bottleneck.first"),
    *norm_pieces("vib.bottleneck.model.1", "coder.bottleneck.first_norm"),
    *linear_pieces("vib.bottleneck.model.3", "coder.bottleneck.second"),
    *norm_pieces("vib.bottleneck.model.4", "coder.bottleneck.second_norm"),
    *linear_pieces("vib.classifier", "coder.classifier"),
    *linear_pieces("fusion.ai_layer.conv1.0", "fusion.value", convolution=True),
    *norm_pieces("fusion.ai_layer.conv1.1", "fusion.value_norm"),
    *norm_pieces("fusion.ai_layer.fc1.0", "fusion.image_norm"),
    *linear_pieces("fusion.ai_layer.fc1.2", "fusion.from_image"),
    *linear_pieces("fusion.ai_layer.fc2", "fusion.from_point"),
    *linear_pieces("fusion.ai_layer.fc3", "fusion.gate"),
    *linear_pieces("fusion.conv1", "fusion.join", convolution=True),
    *norm_pieces("fusion.bn1", "fusion.join_norm"),
]
