"""MMIM beside its official code: both passes on one batch with the memory given, and two epochs of alternating training.

declare-lab/Multimodal-Infomax @ cd0774c5a712ca5f1a5497dbf27dde11cade7434 and the port in thuiar/MMSA @
a94e65d07fa1ae0d44e552390074b29b0898edfd, which has the same parameters under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from moodal.core.batch import Batch, Stream, Target
from moodal.core.errors import DataError, check, did_you_mean
from moodal.core.method import Losses, Progress
from moodal.core.settings import GroupConfig, TrainConfig
from moodal.core.spec import MODALITIES, DataSpec, Modality, Regression, StreamSpec
from moodal.interop.official import Piece, load_pieces
from moodal.interop.parity import Case, Quantity, compare, compare_losses, compare_norms, gradients, read_case
from moodal.layers.inputs import StreamInputs
from moodal.layers.masks import lengths_to_mask
from moodal.layers.memory import Remembered
from moodal.methods.mmim import MMIM, MmimConfig
from moodal.train.update import Updater

#: Official names of the pairs, of the recurrent encoders, and of the contrast heads.
_PAIRS = {"text_to_vision": "tv", "text_to_audio": "ta", "vision_to_audio": "va"}
_ENCODERS = {"audio": "acoustic_enc", "vision": "visual_enc"}
_HEADS = {"text": "cpc_zt", "audio": "cpc_za", "vision": "cpc_zv"}
#: The sets of the entropy by the numbers they have here.
_SETS = ("negative", "positive")


def check_case(path: Path) -> list[Quantity]:
    """Compare one case of MMIM. Raises ``DataError`` for a kind of case that is not known."""
    case = read_case(path)
    kind = str(case.facts["kind"])
    if kind not in _KINDS:
        raise DataError(f"{path.name} is of the kind '{kind}'; known: {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
    return _KINDS[kind](case)


# ---- one batch -------------------------------------------------------------------------------------------------


def _forward(case: Case) -> list[Quantity]:
    """The losses of the three situations of training, with the gradients of each."""
    method = _method(case, rows=0)
    pieces = list(method_pieces(method))
    _load(method, pieces, case)
    method.eval()
    leaves = nn.ParameterDict({m: case.inputs[m] for m in MODALITIES})
    batch = _batch({**case.inputs, **leaves})
    summaries, target, output = method.encode(batch), _labels(case.inputs), method(batch)
    now, earlier = method.projections(summaries, target), _memory(case, method)
    parts = _named_parts(method, method.likelihoods(summaries), method.entropies(now, earlier))
    parts |= {f"nce_{m}": value for m, value in method.contrasts(summaries, output.features["fused"]).items()}
    totals = {
        "mi_pass": -parts["lld"],
        "main_without_memory": method.objective(summaries, target, now, earlier, counted=False).total,
        "main_with_memory": method.objective(summaries, target, now, earlier, counted=True).total,
    }
    shown = method.objective(summaries, target, now, earlier, counted=False).parts
    parts |= {"task_l1": shown["task"], "nce": shown["contrast"]} | {f"total.{n}": t for n, t in totals.items()}
    stages = {**case.facts["extra"]["grad_norm_by_stage"], "main_with_memory": _last_stage(case)}
    return [
        *_outputs(case, method, output.prediction, output.features, now),
        *compare_losses({n: float(v.detach()) for n, v in parts.items()}, case.facts["losses"], _allowed(case)),
        *[q for stage, stored in stages.items() for q in _norms(case, totals[stage], method, pieces, leaves, stored, stage)],
    ]  # fmt: skip


def _named_parts(method: MMIM, likelihoods: Mapping[str, Tensor], entropies: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Likelihoods and entropies by the names of a case, each pair's and their sums."""
    found = {f"lld_{_PAIRS[pair]}": likelihoods[pair] for pair in method.pairs}
    found |= {f"H_{_PAIRS[pair]}": entropies[pair] for pair in method.pairs}
    return found | {n: torch.stack(list(part.values())).sum() for n, part in (("lld", likelihoods), ("H", entropies))}


def _outputs(
    case: Case, method: MMIM, prediction: Tensor, features: Mapping[str, Tensor], now: Mapping[str, Remembered]
) -> list[Quantity]:
    found = {f"{m}_vector": features[f"{m}_summary"] for m in _ENCODERS}
    found |= {"fusion": features["fused"], "prediction": prediction.unsqueeze(1)}
    for pair in method.pairs:
        vectors, groups = now[pair]
        found |= {f"projection.{_PAIRS[pair]}.{name}": vectors[groups == i] for i, name in enumerate(_SETS)}
    absent = sorted(set(case.outputs) - set(found))
    if absent:
        raise DataError(f"The case stores the output '{absent[0]}', which is not compared; known: {', '.join(found)}.")
    return [compare(name, found[name], theirs, _allowed(case)) for name, theirs in case.outputs.items()]


def _last_stage(case: Case) -> dict[str, Mapping[str, float | None]]:
    return {"parameters": case.facts["grad_norm"], "inputs": case.facts["grad_norm_inputs"]}


def _norms(
    case: Case,
    total: Tensor,
    method: MMIM,
    pieces: Sequence[Piece],
    leaves: nn.ParameterDict,
    stored: Mapping[str, Mapping[str, float | None]],
    stage: str,
) -> list[Quantity]:
    """Gradient norms of parameters under official names and of the inputs, in one situation of training."""
    found = gradients(total, method)
    ours = {piece.official: float(found[piece.ours].norm()) for piece in pieces}
    given = {name: float(gradient.norm()) for name, gradient in gradients(total, leaves).items()}
    return [
        *compare_norms(ours, stored["parameters"], _allowed(case), f"gradient.{stage}"),
        *compare_norms(given, stored["inputs"], _allowed(case), f"gradient.{stage}.input"),
    ]


def _memory(case: Case, method: MMIM) -> dict[str, Remembered]:
    """The remembered projections that the case gives."""
    found = {}
    for pair in method.pairs:
        sets = [case.inputs[f"memory.{_PAIRS[pair]}.{name}"] for name in _SETS]
        groups = torch.cat([torch.full((len(part),), number) for number, part in enumerate(sets)])
        found[pair] = Remembered(torch.cat(sets), groups)
    return found


# ---- two epochs ------------------------------------------------------------------------------------------------


class _MappedText(StreamInputs):
    """Text vectors through a linear map that stands for the text encoder."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        width = spec.streams["text"].width
        self.encoder = nn.Linear(width, width)

    def forward(self, batch: Batch, *, degraded: bool = False) -> dict[Modality, Stream]:
        """The streams of the batch, the text mapped."""
        streams = super().forward(batch, degraded=degraded)
        assert self.encoder is not None
        return {**streams, "text": Stream(self.encoder(streams["text"].data), streams["text"].mask)}


class _Recorded:
    """An updater that writes down every loss, and the norm of the gradients before it is clipped."""

    def __init__(self, updater: Updater) -> None:
        self.updater, self.progress = updater, updater.progress
        self.loss = self.norm = math.nan

    def __call__(
        self, losses: Losses, optimiser: str = "main", *, adjust: Callable[[Sequence[nn.Parameter]], None] | None = None
    ) -> None:
        """Update as the updater does. The methods compared here adjust nothing themselves."""
        assert adjust is None
        self.loss = float(losses.total.detach())
        self.updater(losses, optimiser, adjust=self._measure)

    def _measure(self, parameters: Sequence[nn.Parameter]) -> None:
        self.norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def _epochs(case: Case) -> list[Quantity]:
    """The official loop through our own stage, passes and updater."""
    training, batches = case.facts["config"]["training"], _batches(case)
    method = _method(case, rows=sum(map(len, batches)))
    method.inputs = _MappedText(method.spec)
    pieces = [Piece(f"text_enc.bertmodel.{kind}", f"inputs.encoder.{kind}") for kind in ("weight", "bias")]
    pieces += method_pieces(method)
    _load(method, pieces, case)
    stage, fabric, cfg = method.stages()[0], Fabric(accelerator="cpu", devices=1), _train_settings(training)
    updaters = [_Recorded(Updater(fabric, part.groups, cfg, total=1)) for part in stage.passes]
    outputs: dict[str, Tensor] = {}
    done: list[tuple[float, float]] = []
    method.train()
    for epoch in range(training["num_epochs"]):
        for number, (part, updater) in enumerate(zip(stage.passes, updaters, strict=True)):
            # On the larger corpus the official first pass stops halfway.
            taken = math.ceil(len(batches) / 2) if number == 0 and training["dataset"] == "mosei" else len(batches)
            for step, batch in enumerate(batches[:taken]):
                updater.progress = Progress(stage.name, epoch, step, training["num_epochs"])
                updater.updater.rows = len(batch)
                part.step(batch, updater)
                done.append((updater.loss, updater.norm))
        state = method.state_dict()
        outputs |= {f"after_epoch{epoch + 1}.{piece.official}": state[piece.ours].clone() for piece in pieces}
    outputs["eval_prediction"] = method.eval()(_batch(_part(case.inputs, "eval0."))).prediction.unsqueeze(1)
    found = [{f"{i:02d}": pair[which] for i, pair in enumerate(done)} for which in (0, 1)]
    return [
        *[compare(name, outputs[name], theirs, _allowed(case)) for name, theirs in case.outputs.items()],
        *compare_losses(found[0], case.facts["losses"], _allowed(case)),
        *compare_norms(found[1], case.facts["extra"]["before_clipping"], _allowed(case), "norm before clipping"),
    ]


def _batches(case: Case) -> list[Batch]:
    """The training batches, rows numbered through."""
    found: list[Batch] = []
    for number in range(case.facts["config"]["batches"]):
        found.append(_batch(_part(case.inputs, f"train{number}."), first=sum(map(len, found))))
    return found


def _train_settings(training: Mapping[str, Any]) -> TrainConfig:
    """The official numbers as ours. Raises ``DataError`` for what our loop does not do."""
    fits = training["optim"] == "Adam" and training["contrast"] and training["update_batch"] == 1
    fits = fits and training["num_epochs"] <= training["when"]  # the rate falls after so many epochs, at the earliest
    check(fits, "The case was trained otherwise than with Adam, both passes, a step per batch and constant rates.")
    return TrainConfig(
        optimiser="adam",
        rate=training["lr_main"],
        decay=training["weight_decay_main"],
        schedule="constant",
        warmup=0.0,
        clip=training["clip"],
        groups={
            "backbone": GroupConfig(rate=training["lr_bert"], decay=training["weight_decay_bert"]),
            "bound": GroupConfig(rate=training["lr_mmilb"], decay=training["weight_decay_club"]),
        },
    )


# ---- both ------------------------------------------------------------------------------------------------------


def method_pieces(method: MMIM) -> Iterator[Piece]:
    """The official model after its text encoder; so many pairs, directions and layers as ``method`` has."""
    directions = {"ahead": "", "back": "_reverse"} if method.cfg.bidirectional else {"ahead": ""}
    for m, theirs in _ENCODERS.items():
        for own, ending in directions.items():
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                yield Piece(f"{theirs}.rnn.{name}{ending}", f"encoders.{m}.lstm.{own}.0.{name}")
        yield from _linear(f"{theirs}.linear_1", f"encoders.{m}.out")
    for pair in method.pairs:
        theirs = f"mi_{_PAIRS[pair]}"
        for layer in (0, 2):
            yield from _linear(f"{theirs}.mlp_mu.{layer}", f"bounds.{pair}.conditional.mean.{layer}")
            yield from _linear(f"{theirs}.mlp_logvar.{layer}", f"bounds.{pair}.conditional.log_variance.{layer}")
        yield from _linear(f"{theirs}.entropy_prj.0", f"bounds.{pair}.projection")
    places = [0, *range(2, method.cfg.cpc_layers + 1)]  # an activation has the place 1
    for m, theirs in _HEADS.items():
        for place in places:
            yield from _linear(f"{theirs}.net.{place}" if len(places) > 1 else f"{theirs}.net", f"contrast.{m}.{place}")
    for number, own in enumerate(("fusion.first", "fusion.second", "score"), 1):
        yield from _linear(f"fusion_prj.linear_{number}", own)


def _linear(theirs: str, ours: str) -> list[Piece]:
    return [Piece(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _load(method: MMIM, pieces: Sequence[Piece], case: Case) -> None:
    """The weights of the case; the memory, which the official code keeps outside its model, stays empty."""
    own = {name: parameter.detach() for name, parameter in method.named_parameters()}
    method.load_state_dict({**method.state_dict(), **load_pieces(pieces, case.state, own)})


def _method(case: Case, *, rows: int) -> MMIM:
    """The method of a case's sizes in its published form, text given as one vector, without dropout."""
    config = case.facts["config"]
    settings = MmimConfig(
        audio_hidden=config["hidden_audio"],
        vision_hidden=config["hidden_vision"],
        audio_width=config["out_audio"],
        vision_width=config["out_vision"],
        bidirectional=config["bidirectional"],
        fusion=config["fusion"],
        pair_vision_audio=config["add_va"],
        cpc_layers=config["cpc_layers"],
        alpha=config["alpha"],
        beta=config["beta"],
        dropout=0.0,
        reference=True,
    )
    streams: dict[Modality, StreamSpec] = {m: StreamSpec("features", config[m]) for m in MODALITIES}
    return MMIM(settings, DataSpec(streams=streams, task=Regression(-3.0, 3.0), size={"train": rows}))


def _part(inputs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in inputs.items() if name.startswith(prefix)}


def _labels(inputs: Mapping[str, Tensor]) -> Target:
    label = inputs["label"].flatten()
    return Target(label, torch.ones_like(label, dtype=torch.bool))


def _batch(inputs: Mapping[str, Tensor], first: int = 0) -> Batch:
    """The batch of a case: text (N, D) as one step, audio and vision with their lengths; rows numbered from ``first``."""
    text = inputs["text"].unsqueeze(1)
    streams: dict[Modality, Stream] = {"text": Stream(text, torch.ones(text.shape[:2], dtype=torch.bool))}
    for m in ("audio", "vision"):
        streams[m] = Stream(inputs[m], lengths_to_mask(inputs[f"{m}_lengths"], inputs[m].shape[1]))
    rows = torch.arange(first, first + len(text))
    return Batch(ids=tuple(map(str, rows.tolist())), index=rows, streams=streams, target=_labels(inputs))


def _allowed(case: Case) -> Mapping[str, float]:
    return case.facts["tolerance"]


_KINDS: Mapping[str, Callable[[Case], list[Quantity]]] = {"forward": _forward, "epoch": _epochs}
