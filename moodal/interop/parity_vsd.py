"""VSD beside its official code: the training losses and their gradients, schedule, blocks; retrieval in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moodal.core.batch import Target
from moodal.core.errors import DataError
from moodal.core.spec import Classification
from moodal.interop.blocks import compare_block, linear_pieces, norm_pieces
from moodal.interop.loss_cases import compare_loss_case, leaves
from moodal.interop.official import Piece
from moodal.interop.parity import Case, Quantity, compare_number, read_case
from moodal.interop.parity_retrieval import check_regdb, check_sysu
from moodal.layers.reid import ChannelAttention, Compression, grey
from moodal.losses.task import task_loss
from moodal.losses.triplet import ranking_loss, transport_distance
from moodal.methods.vsd import RELEASED_FLOOR, View, VSDConfig, objective

#: official branch -> ours.
BRANCHES: Mapping[str, str] = {
    "i": "infrared",
    "v": "visible",
    "i_ms": "shared_infrared",
    "v_ms": "shared_visible",
}


def check_case(path: Path) -> list[Quantity]:
    """Compare one case of VSD: blocks with weights, losses on given logits, or one of the two retrieval protocols.

    Raises ``DataError`` for another kind of case.
    """
    case = read_case(path)
    if case.state:
        return _modules(case)
    if "i.observation_logits" in case.inputs:
        return _losses(case)
    if "permutations" in case.inputs:
        return check_sysu(case)
    if "thermal" in case.inputs:
        return check_regdb(case)
    raise DataError(f"{path.name} is no case of VSD; known are blocks, losses, and retrieval of SYSU-MM01 and RegDB.")


def rate_factor(epoch: int) -> float:
    """Factor of the base rate in ``epoch`` (from 0) of the released training.

    Linear warm-up from 0.01 over ten epochs, a tenth from epoch 210 on; one epoch early, because the schedule is
    stepped before the first epoch.
    """
    passed = epoch + 1
    if passed < 10:
        return 0.01 + 0.99 * passed / 10
    return 1.0 if passed < 210 else 0.1


# ---- losses ----------------------------------------------------------------------------------------------------


def _losses(case: Case) -> list[Quantity]:
    config, inputs = case.facts["config"], leaves(case.inputs)
    label, infrared = case.inputs["label"], case.inputs["infrared"]
    persons, target = (
        Classification(tuple(map(str, range(config["classes"])))),
        Target(label, torch.ones_like(label).bool()),
    )
    settings = _settings(config)
    parts = objective(_views(inputs), target, infrared, cfg=settings, persons=persons)
    floor = {"floor": RELEASED_FLOOR, "regulariser": config["sinkhorn_epsilon"]}
    shares = {name: inputs[f"{name}.observation_logits"].softmax(dim=1) for name in BRANCHES}
    alone = task_loss(inputs["i.observation_logits"], target, task=persons, label_smoothing=config["epsilon"])[0]
    ranks = {"margins": settings.margins, "limits": settings.limits}
    losses = {
        "classification": parts.classification,
        "ranking": parts.ranking,
        "cml": parts.transport,
        "vsd": parts.sufficiency,
        "vcd": parts.consistency,
        "total": parts.total(settings),
        "ranking_one_feature_i_observation": ranking_loss(inputs["i.observation"], label, infrared, **ranks),
        "classification_one_i_observation": alone,
        "sinkhorn_shared_branches": transport_distance(shares["v_ms"], shares["i_ms"], **floor),
        "sinkhorn_identical": transport_distance(shares["i"], shares["i"], **floor),
    }
    return [*compare_loss_case(case, losses, inputs), *_schedule(case)]


def _settings(config: Mapping[str, Any]) -> VSDConfig:
    weights = config["weights"]
    return VSDConfig(
        classification=weights["classification"],
        ranking=weights["ranking"],
        transport=weights["cml"],
        sufficiency=weights["vsd"],
        consistency=weights["vcd"],
        label_smoothing=config["epsilon"],
        temperature=config["temperature"],
        margins=(config["margin_1"], config["margin_2"]),
        limits=(config["alpha_1"], config["alpha_2"]),
        reference=True,
    )


def _views(inputs: Mapping[str, Tensor]) -> dict[str, View]:
    return {
        ours: View(
            observation_logits=inputs[f"{theirs}.observation_logits"],
            observation=inputs[f"{theirs}.observation"],
            representation_logits=inputs[f"{theirs}.representation_logits"],
            representation=inputs[f"{theirs}.representation"],
        )
        for theirs, ours in BRANCHES.items()
    }


def _schedule(case: Case) -> list[Quantity]:
    factors = case.facts.get("values", {}).get("factor_used_in_epoch", {})
    return [
        compare_number(f"schedule.{epoch}", rate_factor(int(epoch)), theirs, absolute=1e-9, relative=0.0)
        for epoch, theirs in factors.items()
    ]


# ---- blocks ----------------------------------------------------------------------------------------------------


class _Blocks(nn.Module):
    """The bottleneck with its head, and channel attention."""

    def __init__(self, config: Mapping[str, Any], hidden: list[int]) -> None:
        super().__init__()
        width, classes, code = config["features"], config["classes"], 2 * config["z_half"]
        self.compression = Compression(width, classes, hidden=hidden, code=code, dropout=0.0)
        self.attention = ChannelAttention()


def _modules(case: Case) -> list[Quantity]:
    places = sorted(int(name.split(".")[3]) for name in case.state if _is_linear(name))
    hidden = [len(case.state[f"vib.bottleneck.model.{place}.bias"]) for place in places[:-1]]
    block = _Blocks(case.facts["config"], hidden)

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, code = block.compression(inputs["v"])
        attended = block.attention(inputs["map"])
        return {"z": code, "z_logits": logits, "channel_attention": attended, "grey": grey(inputs["image"])}

    return compare_block(case, block, _pieces(places), run)


def _is_linear(name: str) -> bool:
    """Whether ``name`` is the weight of a linear map of the official bottleneck: every third part is one."""
    start, _, rest = name.partition("vib.bottleneck.model.")
    return not start and rest.endswith(".weight") and int(rest.split(".")[0]) % 3 == 0


def _pieces(places: list[int]) -> list[Piece]:
    pieces = [Piece("cam._cam_module.gamma", "attention.gamma")]
    for place in places:
        theirs, ours = "vib.bottleneck.model", "compression.compress"
        pieces += linear_pieces(f"{theirs}.{place}", f"{ours}.{place}")
        if place != places[-1]:
            pieces += norm_pieces(f"{theirs}.{place + 1}", f"{ours}.{place + 1}")
    pieces += linear_pieces("vib.classifier.0", "compression.first") + norm_pieces(
        "vib.classifier.1", "compression.norm"
    )
    return pieces + linear_pieces("vib.classifier.4", "compression.second")
