"""Text, audio and vision features of an MMSA file as ragged streams; the rules stand in ``mmsa_arrays.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moodal.core.errors import DataError
from moodal.core.spec import MODALITIES, Modality
from moodal.data.corpus import SPLITS, CorpusFacts
from moodal.data.ragged import Ragged
from moodal.interop.mmsa_arrays import (
    Window,
    apply_lengths,
    as_frames,
    check_lengths,
    common_window,
    find_content,
    read_triple,
    to_ragged,
)
from moodal.interop.mmsa_report import ImportReport, StreamReport

Columns = dict[str, dict[str, Any]]  # split -> column -> array or list
#: told what is being done, how much of it is done and how much there is.
Progress = Callable[[str, int, int], None]


def read_streams(
    columns: Columns, facts: CorpusFacts, *, modalities: Sequence[Modality], report: ImportReport, tell: Progress
) -> dict[Modality, Ragged]:
    """Streams by modality, for those of ``modalities`` in the file; what was found goes into ``report``.

    Takes the arrays out of ``columns``, so that each is let go of as soon as it is copied.
    """
    chosen = [m for m in MODALITIES if m in modalities and m in columns["train"]]
    arrays = {m: [as_frames(columns[s].pop(m), f"{s} {m}") for s in SPLITS] for m in chosen}
    for modality in chosen:
        report.streams[modality] = StreamReport(_width(modality, arrays[modality], facts, report))
    report.aligned = _is_aligned(columns, arrays)
    rows = _Rows(tell, sum(report.sizes.values()) * len(chosen))
    windows = {
        m: [_window(m, columns[s], s, a, report.streams[m], rows) for s, a in zip(SPLITS, arrays[m])] for m in chosen
    }
    if report.aligned:
        pairs = [common_window(*pair) for pair in zip(windows["audio"], windows["vision"])]
        windows |= {"audio": [audio for audio, _ in pairs], "vision": [vision for _, vision in pairs]}
        report.notes.append("Audio and vision are aligned: both keep the same steps of a clip.")
    streams = {}
    for modality in chosen:
        streams[modality] = to_ragged(arrays.pop(modality), windows[modality], report.streams[modality])
        _remark(modality, report)
    return streams


class _Rows:
    """Adds up the rows that were looked at, for the progress."""

    def __init__(self, tell: Progress, total: int) -> None:
        self._tell, self._done, self._total = tell, 0, total

    def __call__(self, count: int) -> None:
        self._done += count
        self._tell("check", self._done, self._total)


def _width(modality: Modality, arrays: Sequence[np.ndarray], facts: CorpusFacts, report: ImportReport) -> int:
    widths = [array.shape[2] for array in arrays]
    if len(set(widths)) > 1:
        found = ", ".join(f"{split} {width}" for split, width in zip(SPLITS, widths))
        raise DataError(f"{modality} has columns of {found}; one width for all splits was expected.")
    usual = facts.widths.get(modality)
    if usual is not None and usual != widths[0]:
        report.notes.append(f"{modality} is {widths[0]} wide; usual for {facts.name} is {usual}.")
    return widths[0]


def _is_aligned(columns: Columns, arrays: dict[Modality, list[np.ndarray]]) -> bool:
    """Whether audio and vision share their steps: as many in both, and no lengths of their own."""
    if not {"audio", "vision"} <= set(arrays):
        return False
    given = any({"audio_lengths", "vision_lengths"} & set(have) for have in columns.values())
    return not given and all(a.shape[1] == v.shape[1] for a, v in zip(arrays["audio"], arrays["vision"]))


def _window(
    modality: Modality, have: dict[str, Any], split: str, array: np.ndarray, report: StreamReport, rows: _Rows
) -> Window:
    content = find_content(array, report, progress=rows)
    if modality == "text" and "text_bert" in have:
        report.lengths = "mask"
        _, lengths = read_triple(have["text_bert"], f"{split} text_bert")
        report.too_long += int((lengths > array.shape[1]).sum())
        return Window(np.zeros_like(lengths), np.minimum(lengths, array.shape[1]))
    column = f"{modality}_lengths"
    if column not in have:
        return content
    given = check_lengths(have[column], len(array), f"{split} {column}")
    return apply_lengths(content, given, array.shape[1], report)


def _remark(modality: Modality, report: ImportReport) -> None:
    found = report.streams[modality]
    if found.replaced:
        counts = f"{found.nan} NaN, {found.plus_infinity} +inf and {found.minus_infinity} -inf"
        report.warnings.append(f"{modality} held {counts}; each became 0.")
    if found.disagreeing:
        report.warnings.append(
            f"{modality}: {found.disagreeing} given lengths would cut frames that are not zero; all were kept."
        )
    if found.too_long:
        report.warnings.append(f"{modality}: {found.too_long} given lengths exceed the array; its size was used.")
    if found.empty:
        report.notes.append(f"{modality} is missing (all zero) in {found.empty} of {found.rows} clips.")
