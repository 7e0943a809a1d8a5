"""MIB beside its official code: the three forms as whole networks with the noise given, and the fusions alone.

TmacMai/Multimodal-Information-Bottleneck @ f6d006bdf0ebb64975352cf62abbce790d540b64, ``emib.py``, ``lmib.py``, ``cmib.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import DataError, did_you_mean
from moodal.core.method import Output
from moodal.core.spec import MODALITIES, DataSpec, Modality, Regression, StreamSpec
from moodal.interop.crossmodal import crossmodal_pieces
from moodal.interop.loss_cases import leaves
from moodal.interop.official import Piece, depth, load_pieces
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_norms, read_case
from moodal.layers.fusion_operators import (
    Concatenation,
    FusionOperator,
    GraphFusion,
    LowRank,
    TensorActivation,
    TensorProduct,
)
from moodal.methods.mib import FUSED, MIB, MIBConfig

#: official names -> ours.
FORMS = {"emib": "early", "lmib": "late", "cmib": "complete"}
FUSIONS = {"concat": "concatenation", "tensor": "tensor", "low_rank": "low_rank", "graph_fusion": "graph"}
#: Which of its two forms the tensor fusion has in which file.
ACTIVATIONS: Mapping[str, TensorActivation] = {"emib": "relu", "lmib": "relu", "cmib": "tanh"}
#: our codes -> the official ones, and the ends of the official parameters that make them.
CODES = {"text": "z_text", "audio": "z_audio", "vision": "z_vision", FUSED: "z"}
ENDS = {"text": "_l", "audio": "_a", "vision": "_v", FUSED: ""}
#: A literal of the official code that leaves no trace in the shapes.
HEADS = 5


def check_case(path: Path) -> list[Quantity]:
    """Compare one case: every output, loss and gradient norm. Raises ``DataError`` for a kind that is not known."""
    case = read_case(path)
    kinds = {"model": _model, "fusion": _fusion}
    kind = str(case.facts["kind"])
    if kind not in kinds:
        raise DataError(f"{path.name} is of the kind '{kind}'; known: {', '.join(kinds)}{did_you_mean(kind, kinds)}")
    return kinds[kind](case)


def _model(case: Case) -> list[Quantity]:
    method = MIB(_settings(case), _spec(case))
    pieces = model_pieces(method)
    _load(method, pieces, case)
    inputs = leaves({m: case.inputs[m] for m in MODALITIES})
    batch, target = _batch(inputs), case.inputs["label"].flatten()
    noise = {ours: case.noise[theirs] for ours, theirs in CODES.items() if theirs in case.noise}
    output = method.run(batch, noise)
    losses = method.objective(output, Target(target, torch.ones_like(target, dtype=torch.bool)))
    still = method.run(batch, {name: torch.zeros_like(values) for name, values in noise.items()})
    outputs = _traced(output) | {"prediction_mean_path": still.prediction.unsqueeze(1)}
    numbers = _losses({name: float(part) for name, part in losses.parts.items()}, method.cfg.beta)
    numbers["total"] = float(losses.total.detach())
    return [
        *_compared(case, outputs),
        *compare_losses(numbers, case.facts["losses"], case.facts["tolerance"]),
        *_gradients(case, losses.total, method, pieces, inputs),
    ]


def _fusion(case: Case) -> list[Quantity]:
    operator = _operator(case)
    pieces = fusion_pieces(operator)
    _load(operator, pieces, case)
    inputs = leaves({m: case.inputs[m] for m in MODALITIES})
    fused = operator(torch.stack(list(inputs.values()), dim=1))
    loss = (fused * case.inputs["cotangent"]).sum()
    slopes = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    outputs = {"y": fused} | {f"grad.{m}": slope for m, slope in zip(inputs, slopes, strict=True)}
    numbers = {"sum_y_times_cotangent": float(loss.detach())}
    return [
        *_compared(case, outputs),
        *compare_losses(numbers, case.facts["losses"], case.facts["tolerance"]),
        *_gradients(case, loss, operator, pieces, inputs),
    ]


# ---- what is built ---------------------------------------------------------------------------------------------


def _settings(case: Case) -> MIBConfig:
    """Settings read off the shapes of the official weights."""
    config, state = case.facts["config"], case.state
    return MIBConfig(
        form=FORMS[config["variant"]],  # type: ignore[arg-type]
        fusion=FUSIONS[config["fusion"]],  # type: ignore[arg-type]
        beta=case.facts["losses"]["beta"],
        width=state["proj_a.weight"].shape[0],
        hidden=next(
            len(state[name]) for name in (f"fusion.encoder{end}.0.bias" for end in ENDS.values()) if name in state
        ),
        heads=HEADS,
        layers=depth(state, "transa.layers"),
        max_steps=config["steps"],
        reference=True,
    )


def _spec(case: Case) -> DataSpec:
    streams = {m: StreamSpec("features", case.inputs[m].shape[-1]) for m in MODALITIES}
    return DataSpec(streams=streams, task=Regression(-3.0, 3.0))


def _operator(case: Case) -> FusionOperator:
    """The operator of a case of a fusion alone, at sizes of its own."""
    config, inputs = case.facts["config"], len(MODALITIES)
    name, width = FUSIONS[config["fusion"]], config["width"]
    if name == "tensor":
        return TensorProduct(width, inputs, hidden=config["hidden"], activation=ACTIVATIONS[config["variant"]])
    if name == "low_rank":
        rank, _, out = case.state["text_factor"].shape
        return LowRank(width, inputs, out=out, rank=rank)
    if name == "graph":
        return GraphFusion(width, inputs, hidden=config["hidden"], inner=case.state["graph_fusion.0.bias"].shape[0])
    return Concatenation(width, inputs)


def _load(module: nn.Module, pieces: Sequence[Piece], case: Case) -> None:
    """Fill ``module``. All forms share one set of weights in the cases; what another form would read is passed over."""
    of_codes = {piece.official for code in CODES for piece in _code_pieces(code)}
    others = of_codes - {piece.official for piece in pieces}
    state = {name: value for name, value in case.state.items() if name not in others}
    module.load_state_dict(load_pieces(pieces, state, module.state_dict()))
    module.eval()


def _batch(inputs: Mapping[str, Tensor]) -> Batch:
    rows = len(inputs["text"])
    streams: dict[Modality, Stream] = {
        m: Stream(inputs[m], torch.ones(inputs[m].shape[:2], dtype=torch.bool)) for m in MODALITIES
    }
    return Batch(ids=tuple(map(str, range(rows))), index=torch.arange(rows), streams=streams)


# ---- name maps -------------------------------------------------------------------------------------------------


#: Views of the low-rank factors, which lie stacked here.
_FACTORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "text": lambda factors: factors[0],
    "audio": lambda factors: factors[1],
    "video": lambda factors: factors[2],
}
#: Official linear maps of the operators -> ours.
_TENSOR = {f"post_fusion_layer_{i}": own for i, own in enumerate(("first", "second", "third"), 1)}
_GRAPH = {
    "graph_fusion.0": "pair.first",
    "graph_fusion.2": "pair.second",
    "graph_fusion2.0": "triple.first",
    "graph_fusion2.2": "triple.second",
    "attention": "attention",
    "linear_1": "first",
    "linear_2": "second",
    "linear_3": "third",
}


def model_pieces(method: MIB) -> list[Piece]:
    """The official names of the parameters of ``method``."""
    pieces = [
        Piece(f"{theirs}.weight", f"sequences.{m}.convolution.weight")
        for m, theirs in (("text", "bert.proj_l"), ("audio", "proj_a"), ("vision", "proj_v"))
    ]
    for m, theirs in (("audio", "transa."), ("vision", "transv.")):
        pieces += crossmodal_pieces(theirs, f"sequences.{m}.encoder.", layers=method.cfg.layers)
    kept = method.state_dict()
    pieces += [piece for code in CODES for piece in _code_pieces(code) if piece.ours in kept]
    if method.fusion is not None:
        pieces += fusion_pieces(method.fusion, "fusion.fusion1.", "fusion.")
    return pieces


def _code_pieces(code: str) -> list[Piece]:
    """Bottleneck and head of one code."""
    end, own = ENDS[code], f"bottlenecks.{code}"
    names = {
        f"fusion.encoder{end}.0": f"{own}.enter",
        f"fusion.fc_mu{end}": f"{own}.code.mean",
        f"fusion.fc_std{end}": f"{own}.code.deviation",
        f"fusion.decoder{end}": "head.map" if code == FUSED else f"heads.{code}.map",
    }
    return _linear(names)


def fusion_pieces(operator: nn.Module, theirs: str = "", ours: str = "") -> list[Piece]:
    """The official names of the parameters of an operator; prefixes end in a dot."""
    if isinstance(operator, LowRank):
        factors = [Piece(f"{theirs}{name}_factor", f"{ours}factors", view) for name, view in _FACTORS.items()]
        rest = (("fusion_weights", "weights"), ("fusion_bias", "bias"))
        return [*factors, *(Piece(f"{theirs}{name}", f"{ours}{own}") for name, own in rest)]
    names = {Concatenation: {"linear_1": "join"}, TensorProduct: _TENSOR, GraphFusion: _GRAPH}.get(type(operator), {})
    return _linear({f"{theirs}{name}": f"{ours}{own}" for name, own in names.items()})


def _linear(names: Mapping[str, str]) -> list[Piece]:
    return [Piece(f"{theirs}.{kind}", f"{own}.{kind}") for theirs, own in names.items() for kind in ("weight", "bias")]


# ---- what is compared ------------------------------------------------------------------------------------------


def _traced(output: Output) -> dict[str, Tensor]:
    """Outputs under the names of the cases."""
    features = output.features
    found = {name: values for name, values in features.items() if name.endswith("_summary")}
    found |= {"fused": features["fused"], "prediction": output.prediction.unsqueeze(1)}
    for ours, theirs in CODES.items():
        for part in ("mean", "deviation", "code"):
            if f"{ours}_{part}" in features:
                found[f"{part}.{theirs}"] = features[f"{ours}_{part}"]
        if f"{ours}_prediction" in features:
            found[f"prediction.{theirs}"] = features[f"{ours}_prediction"].unsqueeze(1)
    return found


def _losses(parts: Mapping[str, float], beta: float) -> dict[str, float]:
    """Parts of the loss under the names of the cases, where the final error also counts as that of the fused code."""
    found = {"mae_final": parts["task"], "beta": beta}
    for ours, theirs in CODES.items():
        error, divergence = parts.get(f"{ours}_task", parts["task"]), parts.get(f"{ours}_divergence")
        if divergence is not None:
            found |= {f"mae.{theirs}": error, f"kl.{theirs}": divergence}
            found[f"mae_plus_beta_kl.{theirs}"] = error + beta * divergence
    return found


def _compared(case: Case, outputs: Mapping[str, Tensor]) -> Iterable[Quantity]:
    for name, theirs in case.outputs.items():
        if name not in outputs:
            raise DataError(f"The case stores the output '{name}', which is not compared; known: {', '.join(outputs)}.")
        yield compare(name, outputs[name], theirs, case.facts["tolerance"])


def _gradients(
    case: Case, loss: Tensor, module: nn.Module, pieces: Sequence[Piece], inputs: Mapping[str, Tensor]
) -> list[Quantity]:
    """Norms of the gradients of all parameters and inputs; official parameters that nothing reads have none."""
    found = torch.autograd.grad(loss, [*module.parameters(), *inputs.values()])
    ours = dict(zip([name for name, _ in module.named_parameters()], found))
    norms = {piece.official: float(piece.view(ours[piece.ours]).norm()) for piece in pieces}
    stored = {name: norm for name, norm in case.facts["grad_norm"].items() if name in norms or norm is not None}
    of_inputs = {name: float(slope.norm()) for name, slope in zip(inputs, found[len(ours) :], strict=True)}
    allowed = case.facts["tolerance"]
    return [
        *compare_norms(norms, stored, allowed),
        *compare_norms(of_inputs, case.facts["grad_norm_inputs"], allowed, "gradient.input"),
    ]
