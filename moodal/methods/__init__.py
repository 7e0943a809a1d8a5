"""The single table of methods: the command line, documentation, tests and benchmarks all read it."""

from __future__ import annotations

from moodal.core.registry import Table

METHODS = Table(
    "method",
    {
        "text": "moodal.methods.text:TEXT",
        "vsd": "moodal.methods.vsd:VSD",
        "mv2d": "moodal.methods.mv2d:MV2D",
        "bimha": "moodal.methods.bimha:BIMHA",
        "cmga": "moodal.methods.cmga:CMGA",
        "lmr_cbt": "moodal.methods.lmr_cbt:LMRCBT",
        "scalevlad": "moodal.methods.scalevlad:ScaleVLAD",
        "mib": "moodal.methods.mib:MIB",
        "mmmie": "moodal.methods.mmmie:MMMIE",
        "mmim": "moodal.methods.mmim:MMIM",
        "cold_fusion": "moodal.methods.cold_fusion:COLDFusion",
        "effmulti": "moodal.methods.effmulti:EffMulti",
        "emt_dlfr": "moodal.methods.emt_dlfr:EMTDLFR",
        "mult": "moodal.methods.mult:MulT",
        "mcmult": "moodal.methods.mcmult:MCMulT",
        "linear": "moodal.methods.linear:Linear",
    },
)
