"""Every method small enough for a test, and without what is random in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toys import TINY_TEXT

#: settings that make a method tiny; a method that is not here is tested with its defaults.
TINY: Mapping[str, Mapping[str, Any]] = {
    "text": TINY_TEXT,
    "mv2d": {"max_steps": 40, "width": 16, "heads": 2, "head_width": 8, "feed_forward": 8, "hidden": 12, "code": 8},
    "bimha": {"width": 32, "heads": 2, "text_width": 32, "audio_width": 16, "vision_width": 16},
    "cmga": {"width": 16, "fusion_heads": 2},
    "lmr_cbt": {"width": 8, "heads": 2, "layers": 1},
    "scalevlad": {"width": 16, "heads": 2, "layers": 1, "head_layers": 1, "centres": 3, "prototypes": 3},
    "mib": {"width": 16, "hidden": 32, "heads": 2, "layers": 1},
    "mmmie": {"width": 16, "heads": 2, "layers": 1, "fusion_layers": 1},
    "mmim": {"fusion": 16},
    "mult": {"width": 8, "heads": 2, "layers": 1, "memory_layers": 1},
    "mcmult": {"width": 8, "heads": 2, "layers": 2, "memory_layers": 1},
    "cold_fusion": {"width": 16, "hidden": 8},
    "effmulti": {"width": 16},
    "emt_dlfr": {
        "width": 8,
        "heads": 2,
        "layers": 2,
        "audio_hidden": 4,
        "vision_hidden": 4,
        "audio_width": 5,
        "vision_width": 4,
        "head_width": 8,
        "context_bottleneck": 4,
        "text_bottleneck": 4,
        "audio_bottleneck": 4,
        "vision_bottleneck": 4,
    },
}
#: settings that switch off what is random in training.
STILL: Mapping[str, Mapping[str, Any]] = {
    "text": {"noise": False, "head_dropout": 0.0},
    "mv2d": {"dropout": 0.0},
    "bimha": {"dropout": 0.0},
    "cmga": {"dropout": 0.0},
    "lmr_cbt": {
        f"{name}_dropout": 0.0 for name in ("text", "recurrent", "embedding", "attention", "relu", "residual", "head")
    },
    "scalevlad": {"dropout": 0.0, "clustering": 0.0},
    "mib": {"embedding_dropout": 0.0, "attention_dropout": 0.0, "dropout": 0.0},
    # no drawn codes; and rows that are in a batch twice can never be told apart, which keeps InfoNCE up
    "mmmie": {"dropout": 0.0, "minimise": 0.0, "maximise": 0.0},
    # neither contrast nor likelihood comes near 0; with them the task's part alone is looked at in test_mmim.py
    "mmim": {"dropout": 0.0, "alpha": 0.0, "beta": 0.0},
    **{
        name: {f"{part}_dropout": 0.0 for part in ("embedding", "attention", "relu", "residual", "head")}
        for name in ("mult", "mcmult")
    },
    # errors need not order like scores, nor variances be 1; each modality alone need not tell eight rows apart
    "cold_fusion": {"dropout": 0.0, "calibration": 0.0, "ordinality": 0.0, "prior": 0.0, "unimodal": 0.0},
    # neither of the two need come near 0
    "effmulti": {"dropout": 0.0, "similarity": 0.0, "difference": 0.0},
    "emt_dlfr": {"attention_dropout": 0.0, "dropout": 0.0, "head_dropout": 0.0},
}
