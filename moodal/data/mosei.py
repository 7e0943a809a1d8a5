"""CMU-MOSEI: monologues from YouTube on many subjects, sentiment from -3 to 3.

Source   Zadeh, Liang, Poria, Cambria, Morency. Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and
         Interpretable Dynamic Fusion Graph. ACL 2018.
Get it   ``aligned_50.pkl`` or ``unaligned_50.pkl`` of the MMSA project (github.com/thuiar/MMSA lists the links).
Labels   [-3, 3], mostly steps of 1/3 (means of three annotators). Splits by video.
"""

from __future__ import annotations

from typing import ClassVar

from moodal.core.spec import Regression
from moodal.data.corpus import CorpusFacts
from moodal.data.stored import StoredReader


class Mosei(StoredReader):
    """Reader of CMU-MOSEI in MMSA's features."""

    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name="mosei",
        title="CMU-MOSEI",
        language="en",
        task=Regression(-3.0, 3.0),
        protocol="mosei",
        source="https://github.com/thuiar/MMSA",
        licence="research use, terms of the CMU Multimodal SDK",
        size={"train": 16326, "valid": 1871, "test": 4659},
        widths={"text": 768, "audio": 74, "vision": 35},
    )
