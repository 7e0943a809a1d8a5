"""MulT beside its official code and its port in MMSA: the encoder alone, and whole networks, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream
from moodal.core.errors import DataError, did_you_mean
from moodal.core.spec import MODALITIES, Classification, DataSpec, Regression, StreamSpec
from moodal.interop.crossmodal import crossmodal_pieces
from moodal.interop.loss_cases import leaves
from moodal.interop.official import Piece, depth, load_pieces
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_norms, gradients, read_case
from moodal.layers.crossmodal import CrossmodalEncoder
from moodal.methods.mult import MulT, MultConfig

LETTERS: Mapping[str, str] = {"text": "l", "audio": "a", "vision": "v"}


def check_case(path: Path) -> list[Quantity]:
    """Compare one case: every output, the loss and all gradient norms. Raises ``DataError`` for a kind that is not known."""
    case = read_case(path)
    kinds = {"encoder": _encoder, "model": _model}
    kind = str(case.facts["kind"])
    if kind not in kinds:
        raise DataError(f"{path.name} is of the kind '{kind}'; known: {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    return kinds[kind](case)


def _encoder(case: Case) -> list[Quantity]:
    config = case.facts["config"]
    encoder = CrossmodalEncoder(
        config["width"],
        heads=config["heads"],
        layers=config["layers"],
        causal=config["mask"],
        positions=config["port"] != "mmsa",
        reference=True,
    ).eval()
    pieces = crossmodal_pieces(layers=config["layers"])
    encoder.load_state_dict(load_pieces(pieces, case.state, encoder.state_dict()))
    inputs = leaves({name: case.inputs[name] for name in ("target", "source") if name in case.inputs})
    found = encoder(*((values, None) for values in inputs.values()))
    loss = (found * case.inputs["cotangent"]).sum()
    slopes = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    outputs = {"y": found} | {f"grad.{name}": slope for name, slope in zip(inputs, slopes, strict=True)}
    return _compared(case, outputs, {"sum_y_times_cotangent": loss}, encoder, pieces, inputs)


def _model(case: Case) -> list[Quantity]:
    method = MulT(_settings(case), _spec(case)).eval()
    pieces = model_pieces(method)
    # The official code also holds the convolution of a stream that it does not convolve.
    used = {piece.official for piece in pieces} | {name for name in case.state if not name.startswith("proj_")}
    state = {name: tensor for name, tensor in case.state.items() if name in used}
    method.load_state_dict(load_pieces(pieces, state, method.state_dict()))
    inputs = leaves({m: case.inputs[m] for m in MODALITIES})
    outputs = traced(method, inputs)
    name, loss = _loss(case, outputs["prediction"])
    return _compared(case, outputs, {name: loss}, method, pieces, inputs)


def traced(method: MulT, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The prediction and every encoder's whole result, under the names of the cases."""
    rows = len(inputs["text"])
    streams = {m: Stream(inputs[m], torch.ones(inputs[m].shape[:2], dtype=torch.bool)) for m in MODALITIES}
    batch = Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams)
    output = method(batch)
    found = dict(output.features)
    for target, sequence in method.mixed(method.enter(batch), found).items():
        found[f"{target}_memory"] = method.memories[target](sequence)
    found["features"] = found["fused"]
    found["prediction"] = output.prediction.view(rows, -1)
    return found


def model_pieces(method: MulT) -> list[Piece]:
    """The whole network under the official names."""
    found = []
    for modality, entrance in method.entrances.items():
        if entrance.weight is not None:
            found.append(Piece(f"proj_{LETTERS[modality]}.weight", f"entrances.{modality}.weight"))
    for target, sources in method.sources.items():
        theirs = f"trans_{LETTERS[target]}_"
        for source in sources:
            ours = f"crossmodal.{target}_from_{source}."
            found += crossmodal_pieces(f"{theirs}with_{LETTERS[source]}.", ours, layers=method.cfg.layers)
        found += crossmodal_pieces(f"{theirs}mem.", f"memories.{target}.", layers=method.cfg.memory_depth)
    for official, part in (("proj1", "first"), ("proj2", "second"), ("out_layer", "out")):
        found += [Piece(f"{official}.{kind}", f"head.{part}.{kind}") for kind in ("weight", "bias")]
    return found


def _settings(case: Case) -> MultConfig:
    config, state = case.facts["config"], case.state
    first = next(name for name in state if name.startswith("trans_") and "_with_" in name)
    return MultConfig(
        targets=tuple(config.get("targets", MODALITIES)),
        width=config["width"],
        heads=config["heads"],
        layers=depth(state, f"{first.partition('.')[0]}.layers"),
        kernels=tuple(state[f"proj_{letter}.weight"].shape[2] for letter in LETTERS.values()),  # type: ignore[arg-type]
        causal=config.get("mask", True),
        positions=config.get("port") != "mmsa",
        reference=True,
    )


def _spec(case: Case) -> DataSpec:
    streams = {m: StreamSpec("features", case.inputs[m].shape[2]) for m in MODALITIES}
    outputs = case.outputs["prediction"].shape[1]
    task = Regression(-3.0, 3.0) if outputs == 1 else Classification(tuple(map(str, range(outputs))))
    return DataSpec(streams=streams, task=task)


def _loss(case: Case, prediction: Tensor) -> tuple[str, Tensor]:
    """The one loss of the case by its name: mean absolute error, or cross-entropy over pairs of logits, one per emotion."""
    (name,) = case.facts["losses"]
    label = case.inputs["label"]
    if prediction.shape[1] == 1:
        return name, (prediction.flatten() - label.flatten()).abs().mean()
    return name, F.cross_entropy(prediction.view(-1, 2), label.view(-1).long())


def _compared(
    case: Case,
    outputs: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    module: nn.Module,
    pieces: Sequence[Piece],
    inputs: Mapping[str, Tensor],
) -> list[Quantity]:
    """All that the case holds. A parameter that ours lacks is one without a gradient there, which counts as 0."""
    allowed, (loss,) = case.facts["tolerance"], losses.values()
    ours = gradients(loss, module)
    norms = {name: 0.0 for name, norm in case.facts["grad_norm"].items() if norm is None}
    norms |= {piece.official: float(piece.view(ours[piece.ours]).norm()) for piece in pieces}
    slopes = torch.autograd.grad(loss, list(inputs.values()))
    of_inputs = {name: float(slope.norm()) for name, slope in zip(inputs, slopes, strict=True)}
    return [
        *(compare(name, outputs[name], theirs, allowed) for name, theirs in case.outputs.items()),
        *compare_losses({name: float(value.detach()) for name, value in losses.items()}, case.facts["losses"], allowed),
        *compare_norms(norms, case.facts["grad_norm"], allowed),
        *compare_norms(of_inputs, case.facts["grad_norm_inputs"], allowed, "gradient.input"),
    ]
