"""The single table of corpora."""

from __future__ import annotations

from moodal.core.registry import Table

CORPORA = Table(
    "corpus",
    {
        "synthetic": "moodal.data.synthetic:Synthetic",
        "cmu_mosi": "moodal.data.cmu_mosi:CmuMosi",
        "ravdess": "moodal.data.ravdess:Ravdess",
        "mosi_ravdess": "moodal.data.mosi_ravdess:MosiRavdess",
        "pom": "moodal.data.pom:Pom",
        "mosi": "moodal.data.mosi:Mosi",
        "mosei": "moodal.data.mosei:Mosei",
        "sims": "moodal.data.sims:Sims",
        "sims_v2": "moodal.data.sims_v2:SimsV2",
        "sysu_mm01": "moodal.data.sysu_mm01:SysuMm01",
        "regdb": "moodal.data.regdb:RegDB",
        "folder": "moodal.data.folder:Folder",
        "synthetic_reid": "moodal.data.synthetic_reid:SyntheticReid",
    },
)
