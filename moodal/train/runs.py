"""The run folder: everything needed to resume a run, to reopen it, and to make every number and plot again."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import nn

from moodal.core.errors import MoodalError
from moodal.core.files import aside, drop_halves, held, read_json, write_json, write_text
from moodal.core.spec import Classification, Identification, Task
from moodal.train.evaluate import Predictions


@dataclass(frozen=True)
class RunFolder:
    """One seed of one configuration. Written whole files at a time; a finished run has ``scores.json``."""

    path: Path

    @property
    def finished(self) -> bool:
        return (self.path / "scores.json").exists()

    @property
    def started(self) -> bool:
        return (self.path / "config.yaml").exists()

    def scores(self) -> dict[str, Any]:
        return read_json(self.path / "scores.json")

    def data(self) -> dict[str, Any]:
        return read_json(self.path / "data.json")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; what a killed one left half-written is removed. Raises ``MoodalError`` if one is in it."""
        with held(self.path / ".lock", f"{self.path} is being trained by another process; wait for it, or stop it."):
            drop_halves(self.path)
            yield

    def begin(self, config: str, data: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what is known before the first step."""
        write_json(self.path / "data.json", data)
        write_json(self.path / "environment.json", environment)
        write_text(self.path / "config.yaml", config)

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Save a checkpoint (tensors and plain values only) whole or not at all."""
        with aside(self.path / name) as temporary:
            try:
                torch.save(dict(state), temporary)
            except RuntimeError as fault:  # torch's own writer reports a full disk this way
                raise MoodalError(
                    f"{self.path / name} could not be written ({str(fault).splitlines()[0]}); is the disk full? "
                    "The last saved state is intact: free some space and resume."
                ) from fault

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Load a checkpoint; code in it is never run."""
        return load_checkpoint(self.path / name, device)

    def restore(self, name: str, saved: Mapping[str, Any], method: nn.Module) -> None:
        """Put the weights of the checkpoint ``saved`` (loaded from ``name``) into ``method``."""
        try:
            method.load_state_dict(saved["method"])
        except (KeyError, RuntimeError) as fault:
            reason = str(fault).splitlines()[-1].strip()
            raise MoodalError(
                f"{self.path / name} does not fit the run's settings ({reason}); the folder was changed."
            ) from fault

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write history.csv anew: one row an epoch, the columns of all rows in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_text(self.path / "history.csv", _csv(columns, [[row.get(c, "") for c in columns] for row in rows]))

    def write_predictions(
        self, tables: Mapping[str, Predictions], task: Task, *, name: str = "predictions.csv"
    ) -> None:
        """Write predictions of the given splits as CSV; of embeddings only whose they are (see ``write_inspection``)."""
        if isinstance(task, Identification):
            people = [[s, name, int(who)] for s, table in tables.items() for name, who in zip(table.ids, table.target)]
            write_text(self.path / name, _csv(["split", "id", "target"], people))
            return
        classes = task.classes if isinstance(task, Classification) else ()
        columns = ["split", "id", "target", "prediction", *(f"p_{name}" for name in classes)]
        rows = [row for split, table in tables.items() for row in _prediction_rows(split, table, classes)]
        write_text(self.path / name, _csv(columns, rows))

    def write_inspection(self, tables: Mapping[str, Predictions], task: Task) -> None:
        """Write inspection.safetensors: what a method lets one look at, in the row order of the predictions.

        Where the task is identification also the embeddings (N, D), as "<split>.embedding".
        """
        inspection = {f"{s}.{n}": np.ascontiguousarray(v) for s, t in tables.items() for n, v in t.inspection.items()}
        if isinstance(task, Identification):
            inspection |= {f"{s}.embedding": np.ascontiguousarray(t.prediction) for s, t in tables.items()}
        if inspection:
            with aside(self.path / "inspection.safetensors") as temporary:
                try:
                    save_file(inspection, temporary)
                except SafetensorError as fault:
                    raise OSError(str(fault)) from fault

    def write_texts(self, clips: Mapping[str, Sequence[Any]]) -> None:
        """Write texts.jsonl: what was said and explained, for reports. Each clip is a ``Clip`` of a corpus."""
        rows = [_text_row(split, clip) for split, part in clips.items() for clip in part]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_text(self.path / "texts.jsonl", "\n".join(lines) + "\n")

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Write scores.json, which marks the run as finished."""
        write_json(self.path / "scores.json", scores)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A file written by ``torch.save``, tensors and plain values only; a sentence for anything else."""
    if not path.exists():
        raise MoodalError(f"{path} does not exist; expected a checkpoint there.")
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as fault:
        asked = next((line.strip() for line in str(fault).splitlines() if "GLOBAL" in line or "global" in line), None)
        if asked is None:
            raise _unreadable(path, "no checkpoint of torch") from None
        raise MoodalError(
            f"{path} was refused: it holds more than tensors and plain values ({asked}). Nothing in it was run."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise _unreadable(path, next(iter(str(fault).splitlines()), "it ends too early")) from None
    if not isinstance(found, dict):
        raise _unreadable(path, f"it holds {type(found).__name__}, not a mapping")
    return found


def _unreadable(path: Path, reason: str) -> MoodalError:
    return MoodalError(f"{path} is not a readable checkpoint ({reason}); it may be truncated or another kind of file.")


def _prediction_rows(split: str, table: Predictions, classes: Sequence[str]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for place, name in enumerate(table.ids):
        value, target = table.prediction[place], table.target[place] if table.valid[place] else None
        if classes:
            known = "" if target is None else classes[int(target)]
            rows.append([split, name, known, classes[int(np.argmax(value))], *(repr(float(p)) for p in value)])
        else:
            rows.append([split, name, "" if target is None else repr(float(target)), repr(float(value))])
    return rows


def _text_row(split: str, clip: Any) -> dict[str, Any]:
    told = {"explanations": dict(clip.explanations), "explained_by": dict(clip.explained_by)}
    return {"split": split, "id": clip.id, "text": clip.text, "group": clip.group, **told}


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows])
    return text.getvalue()
