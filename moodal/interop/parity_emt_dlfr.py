"""EMT-DLFR beside its official code: the fusion, both views with all losses, the training loop, the missing protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from moodal.core.batch import Stream, Target
from moodal.core.errors import DataError, check, did_you_mean
from moodal.core.method import Group, Losses
from moodal.core.settings import GroupConfig, TrainConfig
from moodal.core.spec import MODALITIES, DataSpec, Modality, Regression, StreamSpec
from moodal.data.degrade import keep_masks
from moodal.interop.official import Piece, load_pieces
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_norms, gradients, read_case
from moodal.layers.masks import lengths_to_mask, zero_padding
from moodal.layers.promotion import MutualPromotion, positions_like
from moodal.methods.emt_dlfr import CONTEXT, EMTDLFR, EMTDLFRConfig
from moodal.train.update import Updater

#: Official names of the modalities and of the context.
_NAMES = {"text": "text", "audio": "audio", "vision": "video", CONTEXT: "gmc_tokens"}
#: The token id that stands for a dropped token in the vocabularies of the cases.
UNKNOWN = 100


def check_case(path: Path) -> list[Quantity]:
    """Compare one case of EMT-DLFR. Raises ``DataError`` for a kind of case that is not known."""
    case = read_case(path)
    kind = str(case.facts["kind"])
    if kind not in _KINDS:
        raise DataError(f"{path.name} is of the kind '{kind}'; known: {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
    return _KINDS[kind](case)


def _outputs(case: Case, ours: Mapping[str, Tensor]) -> list[Quantity]:
    """Every output that the case holds."""
    absent = sorted(set(case.outputs) - set(ours))
    if absent:
        raise DataError(f"The case stores the output '{absent[0]}', which is not compared; known: {', '.join(ours)}.")
    return [compare(name, ours[name], theirs, case.facts["tolerance"]) for name, theirs in case.outputs.items()]


def _norms(case: Case, loss: Tensor, module: nn.Module, pieces: Sequence[Piece], inputs: nn.Module) -> list[Quantity]:
    """Gradient norms of parameters under official names and of the inputs."""
    facts, found = case.facts, gradients(loss, module)
    ours = {piece.official: float(piece.view(found[piece.ours]).norm()) for piece in pieces if piece.ours in found}
    given = {name: float(gradient.norm()) for name, gradient in gradients(loss, inputs).items()}
    return [
        *compare_norms(ours, facts["grad_norm"], facts["tolerance"]),
        *compare_norms(given, facts["grad_norm_inputs"], facts["tolerance"], "gradient.input"),
    ]


def _positions(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state without the official table of positions, and that table; ours is computed and never stored."""
    table = {name: tensor for name, tensor in state.items() if name.endswith("pos_embed.pe")}
    return {name: tensor for name, tensor in state.items() if name not in table}, table


# ---- the kinds of cases ----------------------------------------------------------------------------------------


def _fusion(case: Case) -> list[Quantity]:
    """The fusion alone, with the gradients of a weighted sum of all its outputs."""
    config, inputs = case.facts["config"], case.inputs
    fusion = MutualPromotion(
        config["d_model"],
        MODALITIES,
        heads=config["heads"],
        layers=config["fusion_layers"],
        uniform=True,
        **_shares(config),
    )
    pieces = fusion_pieces(fusion)
    state, table = _positions(case.state)
    fusion.load_state_dict(load_pieces(pieces, state, fusion.state_dict()))
    leaves = nn.ParameterDict({name: inputs[name] for name in (CONTEXT, *MODALITIES)})
    masks = {m: inputs[f"{m}_mask"] for m in MODALITIES}
    promoted = fusion(leaves[CONTEXT], {m: Stream(leaves[m], masks[m]) for m in MODALITIES})
    outputs = {CONTEXT: promoted.context}
    outputs |= {m: zero_padding(promoted.sequences[m], masks[m]) for m in MODALITIES}
    loss = torch.stack([(outputs[name] * inputs[f"cotangent.{name}"]).sum() for name in outputs]).sum()
    outputs |= {f"grad.{name}": gradient for name, gradient in gradients(loss, leaves).items()}
    return [
        *_outputs(case, outputs),
        *[compare(name, positions_like(theirs), theirs[0], case.facts["tolerance"]) for name, theirs in table.items()],
        *compare_losses(
            {"sum_outputs_times_cotangents": float(loss.detach())}, case.facts["losses"], case.facts["tolerance"]
        ),
        *_norms(case, loss, fusion, pieces, leaves),
    ]


def _model(case: Case) -> list[Quantity]:
    """Both views of one batch through the whole model, with every part of the loss."""
    method = _method(case.facts["config"])
    pieces = method_pieces(method)
    state, table = _positions(case.state)
    method.load_state_dict(load_pieces(pieces, state, method.state_dict()))
    method.train(case.facts["config"]["training_mode"])
    floats = {name: tensor for name, tensor in case.inputs.items() if tensor.is_floating_point() and name != "label"}
    leaves = nn.ParameterDict(floats)
    losses = _losses(method, {**case.inputs, **leaves}, nn.Identity())
    after = {f"after.{piece.official}": piece.view(method.state_dict()[piece.ours]) for piece in pieces}
    return [
        *_outputs(case, {**_facts(losses, case.inputs), **after}),
        *[compare(name, positions_like(theirs), theirs[0], case.facts["tolerance"]) for name, theirs in table.items()],
        *compare_losses(_parts(losses), case.facts["losses"], case.facts["tolerance"]),
        *_norms(case, losses.total, method, pieces, leaves),
    ]


def _training(case: Case) -> list[Quantity]:
    """One epoch of the official loop: gradients of some batches, then a step; what is left over is dropped."""
    network = _Network(case.facts["config"])
    pieces = _linear("text_model.model", "words")
    pieces += [Piece(piece.official, f"method.{piece.ours}", piece.view) for piece in method_pieces(network.method)]
    state, table = _positions(case.state)
    network.load_state_dict(load_pieces(pieces, state, network.state_dict()))
    found = _epoch(case, network)
    network.eval()
    batch = _batch(case.inputs, "eval0.")
    last = _losses(network.method, batch, network.words)
    found |= {"eval_total": float(last.total.detach()), "eval_task_incomplete": _parts(last)["task_incomplete"]}
    outputs = {f"after.{piece.official}": piece.view(network.state_dict()[piece.ours]) for piece in pieces}
    outputs |= {f"after.{name}": positions_like(tensor)[None] for name, tensor in table.items()}
    outputs["eval_prediction_incomplete"] = _facts(last, batch)["prediction_incomplete"]
    return [*_outputs(case, outputs), *compare_losses(found, case.facts["losses"], case.facts["tolerance"])]


class _Network(nn.Module):
    """The method and the linear map that stands in for the text encoder."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.method = _method(config)
        self.words = nn.Linear(config["feature_dims"][0], config["text_out"])

    def groups(self) -> list[Group]:
        """The official groups: the text encoder's weights and biases, and the method's own."""
        named = dict(self.words.named_parameters())
        own = self.method.stages()[0].passes[0].all_groups()
        return [Group("backbone", named["weight"]), Group("biases", named["bias"]), *own]


def _train_settings(training: Mapping[str, float]) -> TrainConfig:
    """The official numbers as ours."""
    names = {"backbone": "bert", "audio": "audio", "vision": "video", "main": "other"}
    groups = {
        own: GroupConfig(rate=training[f"learning_rate_{name}"], decay=training[f"weight_decay_{name}"])
        for own, name in names.items()
    }
    groups["biases"] = GroupConfig(rate=training["learning_rate_bert"], decay=0.0)
    return TrainConfig(optimiser="adam", schedule="constant", warmup=0.0, clip=None, groups=groups)


def _epoch(case: Case, network: _Network) -> dict[str, float]:
    """Train on the batches of a case through our updater; their losses by the names of the case, which are in order."""
    training = case.facts["config"]["training"]
    fabric = Fabric(accelerator="cpu", devices=1)
    update = Updater(fabric, {"main": network.groups()}, _train_settings(training), total=1)
    network.train()
    found: dict[str, float] = {}
    for number, name in enumerate(sorted(name for name in case.facts["losses"] if name.isdigit())):
        losses = _losses(network.method, _batch(case.inputs, f"train{number}."), network.words)
        found[name] = float(losses.total.detach())
        update.rows, update.due = 1, (number + 1) % training["update_epochs"] == 0
        # Each batch counts alike, and the mean that our updater takes becomes the sum that theirs takes.
        update(Losses(losses.total * training["update_epochs"], rows=1))
    return found


# ---- both views ------------------------------------------------------------------------------------------------


def _shares(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "share_layers": config["layer_share"],
        "share_modalities": config["modality_share"],
        "share_directions": config["mpu_share"],
    }


def _method(config: Mapping[str, Any]) -> EMTDLFR:
    """The method of a case's sizes, text given as states, without dropout."""
    check(
        config["recon_loss"] == "SmoothL1Loss",
        f"The case reconstructs with {config['recon_loss']}; only SmoothL1Loss is implemented.",
    )
    settings = EMTDLFRConfig(
        width=config["d_model"],
        layers=config["fusion_layers"],
        heads=config["heads"],
        audio_hidden=config["a_lstm_hidden_size"],
        vision_hidden=config["v_lstm_hidden_size"],
        audio_width=config["audio_out"],
        vision_width=config["video_out"],
        head_width=config["post_fusion_dim"],
        context_bottleneck=config["gmc_tokens_pred_dim"],
        text_bottleneck=config["text_pred_dim"],
        audio_bottleneck=config["audio_pred_dim"],
        vision_bottleneck=config["video_pred_dim"],
        attraction=config["loss_attra_weight"],
        reconstruction=config["loss_recon_weight"],
        attention_dropout=0.0,
        dropout=0.0,
        head_dropout=0.0,
        **_shares(config),
        reference=True,
    )
    streams: dict[Modality, StreamSpec] = {
        m: StreamSpec("features", width) for m, width in zip(MODALITIES, config["feature_dims"], strict=True)
    }
    return EMTDLFR(settings, DataSpec(streams=streams, task=Regression(-3.0, 3.0)))


def _batch(inputs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in inputs.items() if name.startswith(prefix)}


def _masks(inputs: Mapping[str, Tensor]) -> dict[Modality, Tensor]:
    """(N, T) real steps by modality."""
    text = inputs["text_mask"].bool()
    return {"text": text, **{m: lengths_to_mask(inputs[f"{m}_lengths"], inputs[m].shape[1]) for m in MODALITIES[1:]}}


def _losses(method: EMTDLFR, inputs: Mapping[str, Tensor], words: nn.Module) -> Losses:
    """The objective of a case's batch, ``words`` standing in for the text encoder."""
    masks = _masks(inputs)
    complete = {"text": words(inputs["text_features"]), **{m: inputs[m] for m in MODALITIES[1:]}}
    incomplete = {m: zero_padding(inputs[m], inputs[f"{m}_kept"]) for m in MODALITIES[1:]}
    incomplete["text"] = words(inputs["text_features_incomplete"])
    missing = {m: mask & ~inputs[f"{m}_kept"].bool() for m, mask in masks.items()}
    label = inputs["label"]
    one, other = ({m: Stream(view[m], masks[m]) for m in MODALITIES} for view in (complete, incomplete))
    return method.objective(one, other, missing, Target(label, torch.ones_like(label, dtype=torch.bool)))


def _parts(losses: Losses) -> dict[str, float]:
    """All losses by the names of a case."""
    found = {name: float(value) for name, value in losses.parts.items()} | {"total": float(losses.total.detach())}
    return {"task_incomplete" if name == "task" else name: value for name, value in found.items()}


def _facts(losses: Losses, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Intermediate results by the names of a case: cut to the longest row, zeros on padding, the text without its first
    and last real step."""
    assert losses.output is not None
    found = dict(losses.output.features)
    for view in ("complete", "incomplete"):
        found[f"prediction_{view}"] = found[f"prediction_{view}"].unsqueeze(1)
        found[f"{CONTEXT}_{view}"] = found[f"{CONTEXT}_{view}"].unflatten(1, (len(MODALITIES), -1))
    for m, mask in _masks(inputs).items():
        real = mask[:, 1:] & (mask.cumsum(1) < mask.sum(1, keepdim=True))[:, 1:] if m == "text" else mask
        steps = real.shape[1] if m == "text" else int(mask.sum(1).max())
        for name in (f"states_{m}_incomplete", f"reconstruction_{m}"):
            found[name] = zero_padding(found[name], real)[:, :steps]
    return found


# ---- name maps -------------------------------------------------------------------------------------------------


def fusion_pieces(fusion: MutualPromotion, theirs: str = "", ours: str = "") -> list[Piece]:
    """The official fusion: each unit and pool under its first name."""
    pieces: list[Piece] = []
    layers, modalities, directions = fusion.kinds
    for layer, modality, direction in product(range(layers), range(modalities), range(directions)):
        official = f"{theirs}mpus.{layer}.{modality}.{direction}.layers.0."
        own = f"{ours}units.{fusion.unit(layer, modality, direction)}."
        pieces += _attention(f"{official}0.", f"{own}cross.") + _linear(
            f"{official}0.norm_context", f"{own}cross.source_norm"
        )
        pieces += _attention(f"{official}1.", f"{own}own.")
        pieces += _linear(f"{official}2.norm", f"{own}norm")
        pieces += _linear(f"{official}2.fn.net.0", f"{own}first") + _linear(f"{official}2.fn.net.2", f"{own}second")
    for layer in range(layers):
        official, own = f"{theirs}attn_pools.{layer}.attention.", f"{ours}pools.{layer}."
        pieces += _linear(f"{official}0", f"{own}first") + _linear(f"{official}2", f"{own}second")
    return pieces


def method_pieces(method: EMTDLFR) -> list[Piece]:
    """The whole official model after its text encoder; maps between equal widths are not there on either side."""
    pieces = fusion_pieces(method.fusion, "fusion.", "fusion.")
    for m, name in _NAMES.items():
        if m in method.readers:
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                pieces.append(Piece(f"{name}_model.rnn.{kind}_l0", f"readers.{m}.lstm.ahead.0.{kind}_l0"))
            if isinstance(method.readers[m].out, nn.Linear):
                pieces += _linear(f"{name}_model.linear_1", f"readers.{m}.out")
        if m != CONTEXT:
            pieces += _linear(f"recon_{name}", f"restore.{m}")
            if isinstance(method.projections[m], nn.Linear):
                pieces.append(Piece(f"proj_{name}.weight", f"projections.{m}.weight"))
        pieces += _siamese(name, f"siamese.{m}.")
    for number, own in enumerate(("first", "second", "third"), start=1):
        pieces += _linear(f"post_fusion_layer_{number}", f"head.{own}")
    return pieces


def _siamese(name: str, ours: str) -> list[Piece]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    pieces = _linear(f"{name}_projector.net.0", f"{ours}projector")
    pieces += _parameters(f"{name}_projector.net.1", f"{ours}projector_norm", statistics)
    pieces.append(Piece(f"{name}_predictor.net.0.weight", f"{ours}enter.weight"))
    pieces += _parameters(f"{name}_predictor.net.1", f"{ours}predictor_norm", ("weight", "bias", *statistics))
    return pieces + _linear(f"{name}_predictor.net.3", f"{ours}leave")


def _attention(theirs: str, ours: str) -> list[Piece]:
    names = {"fn.to_q.weight": "query.weight", "fn.to_kv.weight": "key_value.weight"}
    pieces = [Piece(f"{theirs}{official}", f"{ours}{own}") for official, own in names.items()]
    return pieces + _linear(f"{theirs}fn.to_out", f"{ours}out") + _linear(f"{theirs}norm", f"{ours}norm")


def _linear(theirs: str, ours: str) -> list[Piece]:
    return _parameters(theirs, ours, ("weight", "bias"))


def _parameters(theirs: str, ours: str, names: Sequence[str]) -> list[Piece]:
    return [Piece(f"{theirs}.{name}", f"{ours}.{name}") for name in names]


# ---- the missing protocol --------------------------------------------------------------------------------------


def _missing(case: Case) -> list[Quantity]:
    """The published masks at several rates, and what is left of tokens and frames."""
    config, inputs = case.facts["config"], case.inputs
    real = {m: mask.numpy() for m, mask in _masks(inputs).items()}
    seeds = dict(zip(MODALITIES, config["seeds"], strict=True))
    ours: dict[str, Tensor] = {}
    for rate in config["rates"]:
        kept = {m: torch.from_numpy(mask) for m, mask in keep_masks(real, rate, seeds=seeds).items()}
        ours |= {f"rate{rate}.{m}_kept": mask for m, mask in kept.items()}
        lost = torch.from_numpy(real["text"]) & ~kept["text"]
        ours[f"rate{rate}.text_ids"] = inputs["text_ids"].masked_fill(lost, UNKNOWN)
        ours |= {f"rate{rate}.{m}": zero_padding(inputs[m], kept[m]) for m in MODALITIES[1:]}
    return _outputs(case, ours)


_KINDS: Mapping[str, Callable[[Case], list[Quantity]]] = {
    "fusion": _fusion,
    "model": _model,
    "training": _training,
    "missing": _missing,
}
