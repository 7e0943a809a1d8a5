"""CMU-MOSI: film reviews from YouTube, one speaker each, sentiment from -3 to 3.

Source   Zadeh, Zellers, Pincus, Morency. MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in
         Online Opinion Videos. arXiv 1606.06259 (2016).
Get it   ``aligned_50.pkl`` or ``unaligned_50.pkl`` of the MMSA project (github.com/thuiar/MMSA lists the links).
Labels   [-3, 3], steps of 0.2 (means of five annotators). Splits by video.
"""

from __future__ import annotations

from typing import ClassVar

from moodal.core.spec import Regression
from moodal.data.corpus import CorpusFacts
from moodal.data.stored import StoredReader


class Mosi(StoredReader):
    """Reader of CMU-MOSI in MMSA's features."""

    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name="mosi",
        title="CMU-MOSI",
        language="en",
        task=Regression(-3.0, 3.0),
        protocol="mosi",
        source="https://github.com/thuiar/MMSA",
        licence="research use, terms of the CMU Multimodal SDK",
        size={"train": 1284, "valid": 229, "test": 686},
        widths={"text": 768, "audio": 5, "vision": 20},
    )
