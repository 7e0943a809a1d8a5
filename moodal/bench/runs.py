"""Run folders as they lie on disk: read, checked, grouped by configuration. Nothing here trains or imports a method."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from moodal.core.errors import DataError, MoodalError
from moodal.core.spec import MODALITIES, Classification, Identification, Regression, Task

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

#: Splits in the order in which they are shown.
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Predictions:
    """Rows of one split in file order. ``target`` and ``prediction`` (N,): numbers, or class numbers; NaN: unlabelled.

    ``probabilities`` is (N, C), for classes only.
    """

    ids: tuple[str, ...]
    target: Floats
    prediction: Floats
    probabilities: Floats | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """(N,) True where there is a label."""
        return ~np.isnan(self.target)

    @property
    def scorable(self) -> npt.NDArray[np.bool_]:
        """(N,) True where there is a label and a finite prediction."""
        return self.labelled & np.isfinite(self.prediction)


@dataclass(frozen=True)
class ClipText:
    """What a clip says and how it was explained, for reading only."""

    text: str
    explanations: Mapping[str, str] = field(default_factory=dict)
    explained_by: Mapping[str, str] = field(default_factory=dict)
    group: str = ""  # video, speaker or actor, where the run recorded it


@dataclass(frozen=True)
class StoredRun:
    """One seed of one configuration, as read from its folder.

    A piece that is absent or damaged is empty here, with a sentence in ``missing``; ``require`` turns it into an error.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    history: Mapping[str, tuple[Any, ...]]  # column -> one value per epoch; numbers as floats, NaN where empty
    predictions: Mapping[str, Predictions]  # by split
    scores: Mapping[str, Any]
    inspection: Mapping[str, npt.NDArray[Any]]  # "<split>.<name>" -> (N, ...)
    texts: Mapping[tuple[str, str], ClipText]  # (split, id) -> text
    missing: Mapping[str, str] = field(default_factory=dict)  # file name -> sentence

    @classmethod
    def open(cls, path: str | Path) -> "StoredRun":
        """Read a run folder. Raises ``DataError`` if it is no run folder; damaged pieces go to ``missing``."""
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise DataError(
                f"{folder} holds no config.yaml, so it is not a run folder; give the path that training printed, "
                "runs/<corpus>/<method>/<hash>/seed-<n>."
            )
        config = _config(folder / "config.yaml")
        missing: dict[str, str] = {}
        data: Mapping[str, Any] = _piece(folder / "data.json", _mapping, {}, missing)
        task = task_of(data)
        return cls(
            path=folder,
            config=config,
            environment=_piece(folder / "environment.json", _mapping, {}, missing),
            data=data,
            history=_piece(folder / "history.csv", _history, {}, missing),
            predictions=_piece(folder / "predictions.csv", lambda file: _predictions(file, task), {}, missing),
            scores=_piece(folder / "scores.json", _mapping, {}, missing),
            inspection=_piece(folder / "inspection.safetensors", _tensors, {}, missing),
            texts=_piece(folder / "texts.jsonl", _texts, {}, missing),
            missing=missing,
        )

    @property
    def corpus(self) -> str:
        return str(self.config.get("corpus", "unknown corpus"))

    @property
    def method(self) -> str:
        return str(self.config.get("method", "unknown method"))

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def task(self) -> Task | None:
        """The task written in data.json, or None if that is absent."""
        return task_of(self.data)

    @property
    def protocol(self) -> str | None:
        """Name of the metric protocol."""
        name = self.scores.get("protocol", self.data.get("protocol"))
        return None if name is None else str(name)

    @property
    def finished(self) -> bool:
        """Whether training ended with scores."""
        return bool(self.scores)

    def require(self, *files: str) -> None:
        """Raise ``DataError`` with the sentence of the first of ``files`` that could not be read."""
        for name in files:
            if name in self.missing:
                raise DataError(self.missing[name])

    def inspected(self, split: str, name: str) -> npt.NDArray[Any] | None:
        """The tensor "<split>.<name>" if it is there and has one row per prediction, else None."""
        tensor, table = self.inspection.get(f"{split}.{name}"), self.predictions.get(split)
        return None if tensor is None or table is None or len(tensor) != len(table) else tensor

    def gates(self, split: str) -> tuple[npt.NDArray[Any], tuple[str, ...]] | None:
        """The gate weights (N, M) of ``split`` and the names of their M modalities; None where there are none."""
        gates = self.inspected(split, "gates")
        if gates is None or gates.ndim != 2:
            return None
        width, explained = gates.shape[1], set(part(self.data, "explainer"))
        model = part(self.config, "model")
        used = tuple(str(name) for name in model.get("modalities") or MODALITIES)
        stored = {"text", *part(self.data, "features")}
        if used == ("text",) and model.get("explanations"):
            present = {"text"} | explained  # with text alone, explanations stand for the others
        else:
            present = {name for name in used if name in stored}
        for names in (MODALITIES, tuple(name for name in MODALITIES if name in present)):
            if len(names) == width:
                return gates, names
        return gates, tuple(f"part {place + 1}" for place in range(width))

    def groups(self, split: str) -> tuple[str, ...] | None:
        """The group (video, speaker) of each row of ``split``, or None where the run did not record it."""
        ids = self.predictions[split].ids if split in self.predictions else ()
        names = tuple(self.texts[split, name].group if (split, name) in self.texts else "" for name in ids)
        return names if names and all(names) else None

    def configuration(self) -> dict[str, Any]:
        """The settings that matter for the numbers: all but seed, machine (its precision stays) and logger."""
        settings = {key: value for key, value in self.config.items() if key not in ("seed", "device")}
        missing = part(part(self.config, "data"), "missing")
        if "data" in settings and not missing.get("rate"):  # nothing is missing, whatever the kind
            settings["data"] = {key: value for key, value in part(self.config, "data").items() if key != "missing"}
        train = {key: value for key, value in part(self.config, "train").items() if key != "tensorboard"}
        return settings | {"train": train, "precision": part(self.config, "device").get("precision")}

    def key(self) -> str:
        """A short name of the configuration, the same for all its seeds."""
        text = json.dumps(self.configuration(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_runs(folder: str | Path) -> list[StoredRun]:
    """All runs at or below ``folder``, in order of path. Raises ``DataError`` if there is none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give a run folder, or a folder that holds run folders.")
    runs = [StoredRun.open(file.parent) for file in sorted(root.rglob("config.yaml"))]
    if not runs:
        raise DataError(
            f"There is no run (a folder with a config.yaml) in {root}; train one first, or give another folder."
        )
    return runs


def group_seeds(runs: Iterable[StoredRun]) -> list[tuple[StoredRun, ...]]:
    """Runs of one configuration together, by seed; groups in the order in which they first appear.

    Raises ``DataError`` if a configuration has the same seed twice: the same number would count double.
    """
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.key(), []).append(run)
    for group in groups.values():
        seed, count = Counter(run.seed for run in group).most_common(1)[0]
        if count > 1:
            places = " and ".join(str(run.path) for run in group if run.seed == seed)
            raise DataError(
                f"Seed {seed} of one configuration is there {count} times, in {places}; give each seed once."
            )
    return [tuple(sorted(group, key=lambda run: -1 if run.seed is None else run.seed)) for group in groups.values()]


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each configuration the settings, as "key=value", in which they are not all the same."""
    flat = [_flatten(configuration) for configuration in configurations]
    keys = sorted({key for settings in flat for key in settings})
    varying = [key for key in keys if len({json.dumps(settings.get(key), default=str) for settings in flat}) > 1]
    return [[f"{key}={_plain(settings.get(key))}" for key in varying] for settings in flat]


def part(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under ``key``; an empty one if there is none."""
    found = mapping.get(key)
    return found if isinstance(found, Mapping) else {}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def task_of(data: Mapping[str, Any]) -> Task | None:
    """The task of a data.json, or None if it names none that is known."""
    task = data.get("task")
    if not isinstance(task, Mapping):
        return None
    try:
        if task.get("kind") == "regression":
            return Regression(float(task["low"]), float(task["high"]))
        if task.get("kind") == "classification":
            return Classification(tuple(str(name) for name in task["classes"]))
        if task.get("kind") == "identification":
            return Identification(int(task["identities"]))
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _piece(file: Path, read: Any, empty: T, missing: dict[str, str]) -> T:
    """What ``read`` makes of ``file``; ``empty`` and a sentence in ``missing`` where that fails."""
    if not file.is_file():
        missing[file.name] = f"{file} is missing; the run may be unfinished, or was copied without it."
        return empty
    try:
        return read(file)
    except MoodalError as fault:
        missing[file.name] = str(fault)
    except Exception as fault:  # a file from elsewhere may be broken in any way, and must not take the others along
        missing[file.name] = (
            f"{file} cannot be read ({type(fault).__name__}: {fault}); it is damaged, copy or make the run again."
        )
    return empty


def _config(file: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as fault:
        raise DataError(
            f"{file} cannot be read ({str(fault).splitlines()[0]}); it is damaged, copy or make the run again."
        ) from fault
    if not isinstance(config, dict):
        raise DataError(f"{file} holds no settings, a mapping was expected; it is damaged, copy or make the run again.")
    return config


def _mapping(file: Path) -> Mapping[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(
            f"{file} holds a {type(value).__name__}, an object was expected; it is damaged, make the run again."
        )
    return value


def _rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, restval="")
        rows = list(reader)
    return list(reader.fieldnames or []), rows


def _history(file: Path) -> Mapping[str, tuple[Any, ...]]:
    columns, rows = _rows(file)
    if not {"stage", "epoch"} <= set(columns):
        raise DataError(f"{file} has the columns {', '.join(columns) or '(none)'}; stage and epoch were expected.")
    return {
        column: tuple(row[column] if column == "stage" else _number(row[column]) for row in rows) for column in columns
    }


def _number(cell: str | None) -> float:
    """A CSV cell as a number; NaN where it is empty or none."""
    try:
        return float(cell or "nan")
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(str(cell).lower(), float("nan"))


def _predictions(file: Path, task: Task | None) -> Mapping[str, Predictions]:
    if isinstance(task, Identification):
        raise DataError(
            f"{file} says whose pictures these are; they were ranked by the embeddings in inspection.safetensors."
        )
    columns, rows = _rows(file)
    if not {"split", "id", "target", "prediction"} <= set(columns):
        raise DataError(
            f"{file} has the columns {', '.join(columns) or '(none)'}; split, id, target and prediction were expected."
        )
    if task is None:
        raise DataError(
            f"{file} cannot be understood, because data.json does not say whether these are numbers or classes."
        )
    splits = sorted(
        {row["split"] for row in rows}, key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name)
    )
    return {split: _split(file, [row for row in rows if row["split"] == split], task, columns) for split in splits}


def _split(file: Path, rows: Sequence[Mapping[str, str]], task: Task, columns: Sequence[str]) -> Predictions:
    classes = task.classes if isinstance(task, Classification) else None
    probabilities = None
    if classes is not None and all(f"p_{name}" in columns for name in classes):
        probabilities = np.array([[_number(row[f"p_{name}"]) for name in classes] for row in rows], dtype=np.float64)
    return Predictions(
        ids=tuple(row["id"] for row in rows),
        target=_values(file, [row["target"] for row in rows], classes),
        prediction=_values(file, [row["prediction"] for row in rows], classes),
        probabilities=probabilities,
    )


def _values(file: Path, cells: Sequence[str], classes: Sequence[str] | None) -> Floats:
    """Numbers, or positions among ``classes``; NaN for empty cells."""
    if classes is None:
        return np.array([_number(cell) for cell in cells], dtype=np.float64)
    place = {name: float(index) for index, name in enumerate(classes)} | {"": float("nan")}
    unknown = next((cell for cell in cells if cell not in place), None)
    if unknown is not None:
        raise DataError(
            f"{file} holds the class '{unknown}', and data.json lists {', '.join(classes)}; one of them is damaged."
        )
    return np.array([place[cell] for cell in cells], dtype=np.float64)


def _tensors(file: Path) -> Mapping[str, npt.NDArray[Any]]:
    from safetensors.numpy import load_file  # at use: not every report has tensors

    return load_file(file)


def _texts(file: Path) -> Mapping[tuple[str, str], ClipText]:
    texts: dict[tuple[str, str], ClipText] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line) if line.strip() else {}
        if row:
            texts[str(row["split"]), str(row["id"])] = ClipText(
                str(row.get("text") or ""),
                _strings(row.get("explanations")),
                _strings(row.get("explained_by")),
                str(row.get("group") or ""),
            )
    return texts


def _strings(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items() if item} if isinstance(value, Mapping) else {}
