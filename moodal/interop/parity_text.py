"""TEXT beside its official code: whole models and single blocks, outputs, losses, gradients, chosen experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import DataError, did_you_mean
from moodal.core.spec import Regression
from moodal.interop import official
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_norms, read_case
from moodal.layers.experts import Experts, Router
from moodal.layers.fusion import GatedFusion
from moodal.layers.heads import Head
from moodal.layers.masks import masked_mean
from moodal.layers.routed import MixtureTransformer, RoutedLayer
from moodal.layers.temporal import GatedAlignment
from moodal.layers.transformer import CrossAlignment, SequenceEncoder
from moodal.methods.text import TEXT, TextConfig


class Run(NamedTuple):
    """A built block: the module, its name map and a function from inputs to outputs by name."""

    module: nn.Module
    pieces: Sequence[official.Piece]
    forward: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def check_case(path: Path) -> list[Quantity]:
    """Compare one case of TEXT. Raises ``DataError`` for a kind of case that is not known."""
    case = read_case(path)
    kind = str(case.facts["kind"])
    if kind not in _KINDS:
        raise DataError(f"{path.name} is of the kind '{kind}'; known: {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
    run = _KINDS[kind](case)
    run.module.load_state_dict(official.load_pieces(run.pieces, case.state, run.module.state_dict()))
    run.module.eval()
    inputs = {name: _leaf(tensor) for name, tensor in case.inputs.items() if name not in ("label", "cotangent")}
    outputs = run.forward(inputs)
    name, loss = _loss(case, outputs)
    loss.backward()
    return [
        *_outputs(case, outputs, inputs),
        *compare_losses({name: float(loss.detach())}, case.facts["losses"], case.facts["tolerance"]),
        *_gradients(case, run, inputs),
    ]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_(tensor.is_floating_point())


def _loss(case: Case, outputs: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """The scalar whose gradient the case holds: MSE of the whole model, a weighted sum of a block's output."""
    if "cotangent" in case.inputs:
        return "sum_y_times_cotangent", (outputs["y"] * case.inputs["cotangent"]).sum()
    return "mse", (outputs["score"][:, 0] - case.inputs["label"]).square().mean()


def _outputs(case: Case, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> list[Quantity]:
    found = []
    for name, theirs in case.outputs.items():
        ours = _gradient(inputs[name.removeprefix("grad.")]) if name.startswith("grad.") else outputs.get(name)
        if ours is None:
            raise DataError(f"The case stores the output '{name}', which is not compared; known: {', '.join(outputs)}.")
        found.append(compare(name, ours, theirs, case.facts["tolerance"]))
    return found


def _gradients(case: Case, run: Run, inputs: Mapping[str, Tensor]) -> list[Quantity]:
    """Norms of all gradients, under official names; a parameter without a gradient counts as 0."""
    allowed = case.facts["tolerance"]
    ours = {name: _gradient(parameter) for name, parameter in run.module.named_parameters()}
    norms = {piece.official: float(piece.view(ours[piece.ours]).norm()) for piece in run.pieces}
    given = case.facts.get("grad_norm_inputs") or {}
    of_inputs = {name: float(_gradient(inputs[name]).norm()) for name in given}
    return [
        *compare_norms(norms, case.facts["grad_norm"], allowed),
        *compare_norms(of_inputs, given, allowed, "gradient.input"),
    ]


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


# ---- the kinds of cases ----------------------------------------------------------------------------------------


def _model(case: Case) -> Run:
    config = case.facts["config"]
    settings = official.text_settings(case.state, top_k=config["top_k"]) | {"capacity": config["capacity_factor"]}
    widths = {m: case.inputs[m].shape[-1] for m in ("text", "audio", "vision")}
    method = TEXT(TextConfig(**settings), official.text_spec(widths))
    pieces = official.text_pieces(settings["layers"], settings["experts"])
    return Run(method, pieces, lambda inputs: _model_outputs(method, inputs))


def _model_outputs(method: TEXT, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rows = len(inputs["text"])
    streams = {name: Stream(tensor, torch.ones(tensor.shape[:2], dtype=torch.bool)) for name, tensor in inputs.items()}
    batch = Batch(
        ids=tuple(map(str, range(rows))),
        index=torch.arange(rows),
        streams={m: streams[m] for m in ("text", "audio", "vision")},
        explanations={role: streams[f"{role}_explanation"] for role in ("audio", "vision")},
    )
    output = method(batch)
    features = output.features
    found = {f"{name}_sequence_first": features[f"{name}_sequence"][:, :3] for name in method.kinds}
    found |= {name: features[name] for name in ("text_sequence", "audio_aligned", "vision_aligned")}
    found["temporal"] = torch.cat([features["audio_temporal"], features["vision_temporal"]], dim=1)
    found["mixed_summaries"], found["score"] = features["summaries"], output.prediction.unsqueeze(1)
    for i in range(method.cfg.layers):
        found[f"layer{i}.gates"] = output.inspection["routing"][:, i]
        found[f"layer{i}.experts"], found[f"layer{i}.kept"] = features["experts"][:, i], features["kept"][:, i]
    return found


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return {name: config[name] for name in ("heads", "head_width", "feed_forward")}


def _sequence(case: Case) -> Run:
    config = case.facts["config"]
    layers = official.depth(case.state, "encoder.layers")
    block = SequenceEncoder(config["width"], steps=config["steps"], layers=layers, **_sizes(config))
    return Run(block, official.sequence_pieces(layers=layers), lambda inputs: {"y": block(inputs["x"], None)[0]})


def _explanation(case: Case) -> Run:
    config = case.facts["config"]
    layers = official.depth(case.state, "CrossTransformerEncoder.layers")
    steps = {name: config[name] for name in ("source_steps", "target_steps")}
    block = CrossAlignment(config["width"], layers=layers, **steps, **_sizes(config))
    return Run(
        block,
        official.alignment_pieces(layers=layers),
        lambda inputs: {"y": block((inputs["explanation"], None), (inputs["modality"], None))[0]},
    )


def _temporal(case: Case) -> Run:
    config = case.facts["config"]
    block = GatedAlignment(config["width"], inner=config["inner"], kernel=config["kernel"])

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (audio, _), (vision, _) = block((inputs["audio"], None), (inputs["vision"], None))
        return {"y": torch.cat([audio, vision], dim=1)}

    return Run(block, official.temporal_pieces(), forward)


class _Mixture(nn.Module):
    """A router and its experts alone."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.router = Router(config["width"], experts=config["experts"], top_k=config["top_k"])
        self.experts = Experts(config["width"], hidden=config["hidden"], experts=config["experts"])


def _moe(case: Case) -> Run:
    config = case.facts["config"]
    block = _Mixture(config)

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        routing = block.router(masked_mean(inputs["text"], None), capacity=config["capacity_factor"])
        mixed = block.experts(inputs["x"], routing)
        return {"y": mixed, "gates": routing.gates, "experts": routing.experts, "kept": routing.kept}

    return Run(block, official.expert_pieces(experts=config["experts"]), forward)


def _moe_transformer(case: Case) -> Run:
    config = case.facts["config"]
    names = ("heads", "head_width", "hidden", "experts", "top_k")
    layers = [RoutedLayer(config["width"], **{name: config[name] for name in names}) for _ in range(config["depth"])]
    block = MixtureTransformer(layers, width=config["width"], segments=1, steps=config["steps"])

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        condition = masked_mean(inputs["text"], None)
        mixed, decisions = block([(inputs["x"], None)], condition, capacity=config["capacity_factor"], summaries=False)
        found = {"y": mixed}
        for i, routing in enumerate(decisions):
            found[f"layer{i}.gates"], found[f"layer{i}.experts"] = routing.gates, routing.experts
            found[f"layer{i}.kept"] = routing.kept
        return found

    return Run(block, official.routed_pieces(layers=config["depth"], experts=config["experts"]), forward)


class _Gate(nn.Module):
    """Gate fusion and the head behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fusion = GatedFusion(width, 3)
        self.head = Head(width, Regression(-1.0, 1.0))


def _gate(case: Case) -> Run:
    block = _Gate(case.facts["config"]["width"])

    def forward(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fused, _ = block.fusion(torch.stack([inputs[m] for m in ("text", "audio", "vision")], dim=1))
        return {"y": block.head(fused).unsqueeze(1)}

    return Run(block, official.gate_pieces(), forward)


_KINDS: Mapping[str, Callable[[Case], Run]] = {
    "model": _model,
    "sequence": _sequence,
    "explanation": _explanation,
    "temporal": _temporal,
    "moe": _moe,
    "moe_transformer": _moe_transformer,
    "gate": _gate,
}
