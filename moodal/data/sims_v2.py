"""CH-SIMS v2, supervised part: more Mandarin clips in which sound and face matter more, labelled like CH-SIMS.

Source   Liu, Yuan, Mao, Liang, Yang, Qiu, Cheng, Li, Xu, Gao. Make Acoustic and Visual Cues Matter: CH-SIMS v2.0
         Dataset and AV-Mixup Consistent Module. ICMI 2022.
Get it   the supervised pickle of the CH-SIMS v2 release (github.com/thuiar/ch-sims-v2 lists the links).
Labels   [-1, 1], steps of 0.2 (one label is -0.1); also for text, audio and vision alone.
Widths   of the release; MMSA's configuration lists those of CH-SIMS (33 and 709) for it.
"""

from __future__ import annotations

from typing import ClassVar

from moodal.core.spec import Regression
from moodal.data.corpus import CorpusFacts
from moodal.data.stored import StoredReader


class SimsV2(StoredReader):
    """Reader of the supervised part of CH-SIMS v2."""

    facts: ClassVar[CorpusFacts] = CorpusFacts(
        name="sims_v2",
        title="CH-SIMS v2",
        language="zh",
        task=Regression(-1.0, 1.0),
        protocol="sims",
        source="https://github.com/thuiar/ch-sims-v2",
        licence="research use, terms of THUIAR",
        size={"train": 2722, "valid": 647, "test": 1034},
        widths={"text": 768, "audio": 25, "vision": 177},
    )
