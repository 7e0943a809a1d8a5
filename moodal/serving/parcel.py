"""An extracted clip as bytes: JSON and plain arrays, nothing that could run when it is read.

What comes out of a decoding process is as little to be trusted as the file that went in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from moodal.core.errors import DataError
from moodal.core.spec import MODALITIES, Modality
from moodal.features.clip import ExtractedClip

#: Fields whose values are arrays, one for each modality.
ARRAYS = ("streams", "times")


def pack(clip: ExtractedClip) -> bytes:
    """``clip`` without the place where it lay, which its sentences may name."""
    arrays = {f"{name}.{m}": array for name in ARRAYS for m, array in vars(clip)[name].items()}
    if clip.confidence is not None:
        arrays["confidence"] = clip.confidence
    apart = {*ARRAYS, "confidence", "path"}
    said = {f.name: vars(clip)[f.name] for f in fields(ExtractedClip) if f.name not in apart}
    told = json.dumps(said, default=dict).replace(clip.path, Path(clip.path).name)
    head = np.frombuffer(told.encode(), np.uint8)
    return save({"head": head, **{name: np.ascontiguousarray(array) for name, array in arrays.items()}})


def unpack(data: bytes, *, widths: Mapping[Modality, int]) -> ExtractedClip:
    """The clip in ``data``. ``widths``: modality -> columns of its stream.

    Raises DataError when it is not what :func:`pack` makes, or a stream is not (T, width) finite numbers.
    """
    try:
        arrays = load(data)
        said = json.loads(arrays["head"].tobytes())
        said["words"] = tuple((str(word), float(start), float(end)) for word, start, end in said["words"])
        said["notes"] = tuple(map(str, said["notes"]))
        for name in ARRAYS:
            said[name] = {m: arrays[f"{name}.{m}"] for m in MODALITIES if f"{name}.{m}" in arrays}
        clip = ExtractedClip(**said, path="", confidence=arrays.get("confidence"))
    except Exception as fault:  # damage shows in many ways, and each means the same
        raise DataError(f"The decoder sent something else than a clip ({type(fault).__name__}).") from fault
    for modality, stream in clip.streams.items():
        _verify(modality, stream, clip.times.get(modality), widths)
    return clip


def _verify(modality: Modality, stream: np.ndarray, times: Any, widths: Mapping[Modality, int]) -> None:
    width = widths.get(modality)
    wrong = stream.ndim != 2 or stream.dtype != np.float32 or stream.shape[1] != width
    wrong = wrong or not np.isfinite(stream).all() or np.shape(times) != stream.shape[:1]
    if wrong:
        raise DataError(f"{modality}: the decoder sent {stream.dtype} {stream.shape}, expected finite (T, {width}).")
