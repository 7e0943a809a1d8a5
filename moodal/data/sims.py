"""CH-SIMS: Mandarin film and television clips, one multimodal and three unimodal sentiment labels.

Source   Yu, Xu, Meng, Zhu, Ma, Wu, Zou, Yang. CH-SIMS: A Chinese Multimodal Sentiment Analysis Dataset with
         Fine-grained Annotation of Modality. ACL 2020.
Get it   ``unaligned_39.pkl`` of the MMSA project (github.com/thuiar/MMSA lists the links).
Labels   [-1, 1], steps of 0.2; also for text, audio and vision alone. Splits by clip: a video may be in several.
"""

from __future__ import annotations

from typing import ClassVar

from moodal.core.spec import Regression
from moodal.data.corpus import CorpusFacts
from moodal.data.stored import StoredReader


class Sims(StoredReader):
    """Reader of CH-SIMS in MMSA's features."""

    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name="sims",
        title="CH-SIMS",
        language="zh",
        task=Regression(-1.0, 1.0),
        protocol="sims",
        source="https://github.com/thuiar/MMSA",
        licence="research use, terms of THUIAR",
        size={"train": 1368, "valid": 456, "test": 457},
        widths={"text": 768, "audio": 33, "vision": 709},
    )
