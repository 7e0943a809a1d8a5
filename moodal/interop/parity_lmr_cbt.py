"""LMR-CBT beside its official code: the LSTM along time (what is meant), and as it is released, across the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from moodal.core.batch import Batch, Stream
from moodal.core.spec import MODALITIES, Classification, DataSpec, Modality, Regression, StreamSpec
from moodal.interop.crossmodal import crossmodal_pieces
from moodal.interop.official import Piece, load_pieces
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_number, gradients, read_case
from moodal.methods.lmr_cbt import LMRCBT, LmrCbtConfig

#: Parameters of the official code that take part in nothing.
UNUSED = ("attn_weight_affine.", "version", "_float_tensor", "num_batches_tracked")
LETTERS: Mapping[Modality, str] = {"text": "l", "audio": "a", "vision": "v"}
#: Gradient norms below this are rounding noise.
NOISE = 1e-6


def check_case(path: Path) -> list[Quantity]:
    """Compare one case: every stored output, the loss and all gradient norms of the LSTM along time."""
    case = read_case(path)
    inputs = {m: case.inputs[m] for m in MODALITIES}
    method = _method(case, reference=False)
    found = _traced(method, inputs)
    loss = _loss(found["prediction"], case.inputs["target"])
    as_is = _method(case, reference=True)
    first = {m: values[:1] for m, values in inputs.items()}
    ours = {f"time.{name}": value for name, value in found.items()}
    ours |= {f"asis1.{name}": value for name, value in _traced(as_is, first).items()}
    ours |= {f"asisB.{name}": value for name, value in _traced(as_is, inputs).items()}
    checks = [compare(name, ours[name], case.outputs[name], case.facts["tolerance"]) for name in case.outputs]
    allowed = {"loss_relative": 0.0, **case.facts["tolerance"]}
    checks += compare_losses({"task": float(loss.detach())}, case.facts["losses"], allowed)
    return checks + _gradient_checks(case, method, loss)


def _method(case: Case, *, reference: bool) -> LMRCBT:
    config, outputs = case.facts["config"], case.facts["config"]["outputs"]
    streams = {m: StreamSpec("features", config[f"{m}_width"]) for m in MODALITIES}
    task = Regression(-3.0, 3.0) if outputs == 1 else Classification(tuple(map(str, range(outputs))))
    sizes = {name: config[name] for name in ("width", "heads", "layers")}
    method = LMRCBT(LmrCbtConfig(**sizes, reference=reference), DataSpec(streams=streams, task=task)).eval()
    given = {name: value for name, value in case.state.items() if not name.endswith(UNUSED) and UNUSED[0] not in name}
    own = method.state_dict()
    kept = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    method.load_state_dict(own | load_pieces(_pieces(config["layers"]), given, kept))
    return method


def _traced(method: LMRCBT, inputs: Mapping[Modality, Tensor]) -> dict[str, Tensor]:
    """The prediction and every step on the way to it, under the names of the cases."""
    rows = len(inputs["text"])
    streams = {m: Stream(x, torch.ones(x.shape[:2], dtype=torch.bool)) for m, x in inputs.items()}
    output = method(Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams))
    found = dict(output.features)
    encoded = {m: method.encoders[m]((found[f"{m}_local"], None)) for m in ("audio", "vision")}
    fused = method.encoders["text"]((found["fused_sequence"], None))
    prediction = output.prediction if output.prediction.dim() == 2 else output.prediction.unsqueeze(1)
    return {
        **{f"{m}_local": found[f"{m}_local"] for m in MODALITIES},
        **{f"{m}_encoded": values for m, values in encoded.items()},
        "c1": found["vision_shift"],
        "c2": found["audio_shift"],
        "fused_sequence": found["fused_sequence"],
        "fused_encoded": fused,
        "features": found["fused"],
        "prediction": prediction,
    }


def _loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, or cross-entropy over pairs of logits: one pair for each of four emotions."""
    if prediction.shape[1] == 1:
        return (prediction - target).abs().mean()
    return F.cross_entropy(prediction.view(-1, 2), target.view(-1).long())


def _gradient_checks(case: Case, method: LMRCBT, loss: Tensor) -> list[Quantity]:
    ours = gradients(loss, method)
    relative = case.facts["tolerance"]["grad_norm_relative"]
    pieces = [piece for piece in _pieces(method.cfg.layers) if piece.ours in ours]
    norms = {piece.official: float(piece.view(ours[piece.ours]).norm()) for piece in pieces}
    stored = {name: norm for name, norm in case.facts["grad_norm"].items() if norm is not None}
    return [
        compare_number(f"gradient.{name}", norms[name], norm, absolute=NOISE, relative=relative)
        for name, norm in stored.items()
    ]


def _pieces(layers: int) -> list[Piece]:
    """The official names of all parameters and running statistics."""
    found = [Piece(f"proj_{LETTERS[m]}.weight", f"local.{m}.convolution.weight") for m in ("audio", "vision")]
    found += list(_recurrent())
    found += [Piece(f"bn_l.{part}", f"text.norm.{part}") for part in ("weight", "bias")]
    for modality in ("audio", "vision"):
        letter = LETTERS[modality]
        parts = ("weight", "bias", "running_mean", "running_var")
        found += [Piece(f"bn_{letter}.{part}", f"local.{modality}.norm.{part}") for part in parts]
        found += [
            Piece(f"cross_{letter}.0.{theirs}", f"blocks.{modality}.{ours}")
            for theirs, ours in (
                ("channel_affine.weight", "steps.weight"),
                ("channel_affine.bias", "steps.bias"),
                ("y_affine.weight", "vector.weight"),
            )
        ]
    for modality in MODALITIES:
        found += crossmodal_pieces(f"trans_{LETTERS[modality]}_mem.", f"encoders.{modality}.", layers=layers)
    for theirs, ours in (("proj1", "hidden.0"), ("proj2", "hidden.3"), ("out_layer", "out.map")):
        found += [Piece(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]
    return found


def _recurrent() -> Iterator[Piece]:
    for layer in (0, 1):
        for ending, direction in (("", "ahead"), ("_reverse", "back")):
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                yield Piece(f"lstm.{part}_l{layer}{ending}", f"text.recurrent.{direction}.{layer}.{part}_l0")
