"""Official checkpoints: which of their parameters is which part of ours.

A name map is a list of ``Piece``: an official parameter is a view of one of ours (a slice, transposed or reshaped), so
the same list loads weights and reads gradients back under official names.
TEXT: fip-lab/TEXT @ 96be55c10883b789729ee62778eb3025cdcdfca0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moodal.core.errors import MoodalError, check, did_you_mean
from moodal.core.spec import DataSpec, Modality, Regression, StreamSpec
from moodal.methods.text import TEXT, TextConfig

State = dict[str, Tensor]
PREFIX_ENCODER = "bertmodel.model."
#: Parts of a BERT checkpoint that the hidden states do not depend on.
UNUSED_ENCODER = ("pooler.", "embeddings.position_ids")


@dataclass(frozen=True)
class Piece:
    """``official`` is ``view`` of our parameter ``ours``; the view shares memory, so it can be written to."""

    official: str
    ours: str
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Converted:
    """An official checkpoint as ours: settings of ``TextConfig``, widths of the streams, our state dict.

    ``encoder`` holds the sizes of the BERT inside (the keys of its config.json) or is None if there was none.
    """

    settings: Mapping[str, Any]
    widths: Mapping[str, int]
    state: State
    encoder: Mapping[str, int] | None = field(default=None)


def convert_text(state: Mapping[str, Tensor], *, top_k: int = 3, head_width: int = 64) -> Converted:
    """Convert a state dict of the official TEXT; sizes are read off its shapes.

    ``top_k`` and ``head_width`` leave no trace in the shapes; the official code has 3 (its option's default) and 64.
    Raises ``MoodalError`` naming what is missing, left over or of an unexpected shape.
    """
    state = _without_wrapper(state)
    body = {name: tensor for name, tensor in state.items() if not name.startswith("bertmodel.")}
    settings = text_settings(body, top_k=top_k, head_width=head_width)
    widths = {m: _shape(body, f"proj_{letter}0.weight")[1] for m, letter in _LETTERS.items()}
    method = TEXT(TextConfig(**settings), text_spec(widths))
    ours = load_pieces(text_pieces(settings["layers"], settings["experts"]), body, method.state_dict())
    words = {name.removeprefix(PREFIX_ENCODER): t for name, t in state.items() if name.startswith("bertmodel.")}
    encoder = _encoder_sizes(words) if words else None
    kept = {name: tensor for name, tensor in words.items() if not name.startswith(UNUSED_ENCODER)}
    ours |= {f"encoder.model.{name}": tensor.float() for name, tensor in kept.items()}
    return Converted(settings, widths, ours, encoder)


def read_state(path: Path) -> State:
    """The tensors of a checkpoint file (.safetensors, or .pt/.pth read without running code in it)."""
    check(path.is_file(), f"{path} is not there; give the path of a checkpoint file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds, depending on what is wrong with the file
        raise MoodalError(
            f"{path.name} is not a checkpoint that can be read without running code in it "
            f"({type(error).__name__}); save its state dict as .safetensors."
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    fits = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    check(
        fits,
        f"{path.name} holds no state dict; a mapping of names to tensors was expected, by itself or as 'state_dict'.",
    )
    return dict(content)


def load_pieces(pieces: Sequence[Piece], state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """Official ``state`` -> ours, shaped like ``like``. Raises ``MoodalError`` on any difference of names or shapes."""
    _check_names({piece.official for piece in pieces}, state)
    ours = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    filled = set()
    for piece in pieces:
        place, value = piece.view(ours[piece.ours]), state[piece.official]
        check(
            place.shape == value.shape,
            f"The checkpoint's '{piece.official}' has shape {tuple(value.shape)}; {tuple(place.shape)} was expected.",
        )
        place.copy_(value)
        filled.add(piece.ours)
    check(
        filled == set(ours),
        f"Nothing in the checkpoint fills {sorted(set(ours) - filled)[:1]}; this is a fault of the name map.",
    )
    return ours


def _check_names(known: set[str], state: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(known - set(state)), sorted(set(state) - known)
    if missing:
        hint = did_you_mean(missing[0], unknown)
        raise MoodalError(f"The checkpoint has no parameter '{missing[0]}'{hint}; is it of another method or version?")
    if unknown:
        raise MoodalError(
            f"The checkpoint's parameter '{unknown[0]}' is not known; is it of another method or version?"
        )


def text_spec(widths: Mapping[str, int]) -> DataSpec:
    """The data spec of an official TEXT model, text and explanations given as hidden states."""
    text = StreamSpec("features", widths["text"])
    streams: dict[Modality, StreamSpec] = {
        "text": text,
        "audio": StreamSpec("features", widths["audio"]),
        "vision": StreamSpec("features", widths["vision"]),
    }
    return DataSpec(streams=streams, task=Regression(-3.0, 3.0), explanations={"audio": text, "vision": text})


def text_settings(state: Mapping[str, Tensor], *, top_k: int = 3, head_width: int = 64) -> dict[str, Any]:
    """Settings of ``TextConfig`` read off the shapes of an official TEXT state (without its text encoder)."""
    positions, width = _shape(state, "proj_t.pos_embedding")[1:]
    inner = _shape(state, "proj_t.encoder.layers.0.0.fn.to_q.weight")[0]
    check(inner % head_width == 0, f"Attention is {inner} wide, which is not a multiple of heads of {head_width}.")
    mixture = "text_router_moe_trans.encoder.layers"
    experts, hidden = (
        _shape(state, f"{mixture}.0.1.fn.router.topkroute_linear.weight")[0],
        _shape(state, f"{mixture}.0.1.fn.experts.0.net.0.weight")[0],
    )
    return {
        "max_steps": positions - 1,
        "width": width,
        "heads": inner // head_width,
        "head_width": head_width,
        "feed_forward": _shape(state, "proj_t.encoder.layers.0.1.fn.net.0.weight")[0],
        "layers": depth(state, mixture),
        "experts": experts,
        "top_k": min(top_k, experts),
        "expert_hidden": hidden,
        "temporal_inner": _shape(state, "cross_align_a_v.audio_out_proj.weight")[1],
        "kernel": _shape(state, "cross_align_a_v.audio_conv1d.weight")[2],
        "reference": True,
    }


def depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts ``prefix.0``, ``prefix.1``, ... there are."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in state if name.startswith(f"{prefix}.")})


# ---- name maps -------------------------------------------------------------------------------------------------


_LETTERS = {"text": "t", "audio": "a", "vision": "v"}
_SEQUENCES = {
    "text": ("proj_t0", "proj_t"),
    "audio": ("proj_a0", "proj_a_feat"),
    "vision": ("proj_v0", "proj_v_feat"),
    "audio_explanation": ("proj_a_clue0", "proj_a_clue"),
    "vision_explanation": ("proj_v_clue0", "proj_v_clue"),
}
_SIDES = {"audio": "audio", "vision": "visual"}


def text_pieces(layers: int, experts: int) -> list[Piece]:
    """The whole official model after its text encoder."""
    pieces: list[Piece] = []
    for ours, (projection, sequence) in _SEQUENCES.items():
        pieces += _linear(projection, f"projections.{ours}")
        pieces += sequence_pieces(f"{sequence}.", f"sequences.{ours}.")
    for ours, theirs in _SIDES.items():
        pieces += alignment_pieces(f"corss_fusion_{theirs}.", f"alignments.{ours}.")
    pieces += temporal_pieces("cross_align_a_v.", "temporal.")
    pieces += routed_pieces("text_router_moe_trans.", "mixture.", layers=layers, experts=experts)
    return pieces + gate_pieces("cls_head.", "")


def sequence_pieces(theirs: str = "", ours: str = "", *, layers: int = 1) -> list[Piece]:
    """The official sequence encoder (learnt token, positions, transformer layers)."""
    pieces = [
        Piece(f"{theirs}pos_embedding", f"{ours}positions", lambda tensor: tensor[None]),
        Piece(f"{theirs}extra_token", f"{ours}summary", lambda tensor: tensor[None]),
    ]
    return pieces + _layers(f"{theirs}encoder.layers.", f"{ours}layers.", layers)


def alignment_pieces(theirs: str = "", ours: str = "", *, layers: int = 1) -> list[Piece]:
    """The official explanation alignment."""
    pieces = [
        Piece(f"{theirs}pos_embedding_s", f"{ours}source_positions", lambda tensor: tensor[None]),
        Piece(f"{theirs}pos_embedding_t", f"{ours}target_positions", lambda tensor: tensor[None]),
    ]
    return pieces + _layers(f"{theirs}CrossTransformerEncoder.layers.", f"{ours}layers.", layers)


def temporal_pieces(theirs: str = "", ours: str = "") -> list[Piece]:
    """The official temporal alignment."""
    pieces: list[Piece] = []
    for side, name in _SIDES.items():
        pieces.append(Piece(f"{theirs}{name}_RMSNorm.weight", f"{ours}{side}.norm.weight"))
        pieces.append(Piece(f"{theirs}{name}_in_proj.weight", f"{ours}{side}.enter.weight"))
        pieces.append(Piece(f"{theirs}{name}_out_proj.weight", f"{ours}{side}.leave.weight"))
        pieces += _linear(f"{theirs}{name}_conv1d", f"{ours}{side}.convolution")
    return pieces


def routed_pieces(theirs: str = "", ours: str = "", *, layers: int, experts: int) -> list[Piece]:
    """The official transformer with routed experts; its one table of positions is our segments end to end."""
    pieces = [Piece(f"{theirs}pos_embedding", f"{ours}positions", lambda tensor: tensor.view(1, -1, tensor.shape[-1]))]
    for i in range(layers):
        first, second, own = f"{theirs}encoder.layers.{i}.0.", f"{theirs}encoder.layers.{i}.1.", f"{ours}layers.{i}."
        pieces += _attention(first, f"{own}attention.") + _linear(f"{second}norm", f"{own}norm")
        pieces += expert_pieces(f"{second}fn.", own, experts=experts)
    return pieces


def expert_pieces(theirs: str = "", ours: str = "", *, experts: int) -> list[Piece]:
    """The official router and its list of experts, which lie stacked here."""
    pieces = _linear(f"{theirs}router.topkroute_linear", f"{ours}router.logits")
    pieces += _linear(f"{theirs}router.noise_linear", f"{ours}router.noise")
    for e in range(experts):
        name, stacked = f"{theirs}experts.{e}.net.", f"{ours}experts."
        pieces.append(Piece(f"{name}0.weight", f"{stacked}first", _at(e)))
        pieces.append(Piece(f"{name}0.bias", f"{stacked}first_bias", _at(e)))
        pieces.append(Piece(f"{name}3.weight", f"{stacked}second", _turned(e)))
        pieces.append(Piece(f"{name}3.bias", f"{stacked}second_bias", _at(e)))
    return pieces


def gate_pieces(theirs: str = "", ours: str = "") -> list[Piece]:
    """The official gate fusion with the head in it."""
    return [
        *_linear(f"{theirs}gate.0", f"{ours}fusion.gate"),
        *_linear(f"{theirs}cls_head.0", f"{ours}head.first"),
        *_linear(f"{theirs}cls_head.3", f"{ours}head.second"),
    ]


def _layers(theirs: str, ours: str, count: int) -> list[Piece]:
    return [piece for i in range(count) for piece in _layer(f"{theirs}{i}.", f"{ours}{i}.")]


def _layer(theirs: str, ours: str) -> Iterator[Piece]:
    yield from _attention(f"{theirs}0.", f"{ours}attention.")
    yield from _linear(f"{theirs}1.norm", f"{ours}feed_forward.norm")
    yield from _linear(f"{theirs}1.fn.net.0", f"{ours}feed_forward.first")
    yield from _linear(f"{theirs}1.fn.net.3", f"{ours}feed_forward.second")


def _attention(theirs: str, ours: str) -> list[Piece]:
    pieces = _linear(f"{theirs}fn.to_out.0", f"{ours}out")
    for i, part in enumerate("qkv"):
        pieces.append(Piece(f"{theirs}norm_{part}.weight", f"{ours}scale", _at(i)))
        pieces.append(Piece(f"{theirs}norm_{part}.bias", f"{ours}shift", _at(i)))
        pieces.append(Piece(f"{theirs}fn.to_{part}.weight", f"{ours}weight", _at(i)))
    return pieces


def _linear(theirs: str, ours: str) -> list[Piece]:
    return [Piece(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _at(place: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[place]


def _turned(place: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[place].T


# ---- shapes ----------------------------------------------------------------------------------------------------


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size:
    check(
        name in state,
        f"The checkpoint has no parameter '{name}', so it is not of TEXT; official TEXT checkpoints hold it.",
    )
    return state[name].shape


def _without_wrapper(state: Mapping[str, Tensor]) -> State:
    """Names as the bare model has them: saved from a data-parallel wrapper, all begin with "module."."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state.items()}


def _encoder_sizes(words: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of a BERT by the keys of its config.json. The number of heads leaves no trace: BERT's are 64 wide."""
    vocabulary, width = _shape(words, "embeddings.word_embeddings.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth(words, "encoder.layer"),
        "num_attention_heads": width // 64,
        "intermediate_size": _shape(words, "encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": _shape(words, "embeddings.position_embeddings.weight")[0],
        "type_vocab_size": _shape(words, "embeddings.token_type_embeddings.weight")[0],
    }
