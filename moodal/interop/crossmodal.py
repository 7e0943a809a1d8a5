"""The crossmodal encoder under the names of MulT's authors, which several repositories copied.

yaohungt/Multimodal-Transformer @ a670936824ee722c8494fd98d204977a1d663c7a, ``modules/transformer.py``.
"""

from __future__ import annotations

from moodal.interop.official import Piece

#: official part of a block -> ours.
_BLOCK = {
    "self_attn.in_proj_weight": "attention.weight",
    "self_attn.in_proj_bias": "attention.bias",
    "self_attn.out_proj.weight": "attention.out.weight",
    "self_attn.out_proj.bias": "attention.out.bias",
    "fc1.weight": "feed_forward.first.weight",
    "fc1.bias": "feed_forward.first.bias",
    "fc2.weight": "feed_forward.second.weight",
    "fc2.bias": "feed_forward.second.bias",
    "layer_norms.0.weight": "norm.weight",
    "layer_norms.0.bias": "norm.bias",
    "layer_norms.1.weight": "feed_forward.norm.weight",
    "layer_norms.1.bias": "feed_forward.norm.bias",
}


def crossmodal_pieces(theirs: str = "", ours: str = "", *, layers: int) -> list[Piece]:
    """The name map of one ``CrossmodalEncoder`` of so many ``layers``; prefixes end in a dot."""
    pieces = [
        Piece(f"{theirs}layers.{i}.{official}", f"{ours}layers.{i}.{own}")
        for i in range(layers)
        for official, own in _BLOCK.items()
    ]
    return pieces + [Piece(f"{theirs}layer_norm.{kind}", f"{ours}norm.{kind}") for kind in ("weight", "bias")]
