"""A folder of clips and a table of labels to a list of work; every fault of the table is told at once.

Columns of the table: ``file`` (relative to the folder) and ``label``; if there: ``id``, ``split`` (train, valid, test),
``text`` (the transcript), ``start`` and ``end`` (seconds), ``group`` (the speaker), ``language``.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from moodal.core.errors import ConfigError, DataError, check, did_you_mean
from moodal.core.spec import Classification, Regression, Task
from moodal.data.corpus import SPLITS, CorpusFacts
from moodal.data.folder import folder_facts

log = logging.getLogger(__name__)
REQUIRED = ("file", "label")
OPTIONAL = ("id", "split", "text", "start", "end", "group", "language")
COLUMNS = (*REQUIRED, *OPTIONAL)
#: Share of the clips that valid and test get each, where the table has no column ``split``.
HELD_OUT = 0.15
#: Faults that are told; of more only their number.
MOST_FAULTS = 40
#: ISO 639 for several languages.
SEVERAL_LANGUAGES = "mul"


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """What the labels are. ``low``, ``high``: ends of the scale of numbers (the smallest and largest label otherwise);
    ``classes``: the classes in their order (the words found, sorted, otherwise; with it, numbers may be names too).

    ``language``: of clips without one in the table; ``source``, ``licence``: of the clips, kept in the store.
    """

    low: float | None = None
    high: float | None = None
    classes: tuple[str, ...] = ()
    language: str = "en"
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        check(
            all(map(math.isfinite, ends)), f"the scale of the labels is {self.low} to {self.high}; give finite numbers."
        )
        check(
            len(ends) < 2 or ends[0] < ends[1],
            f"the scale of the labels is {self.low} to {self.high}; its low end must lie below its high end.",
        )
        check(
            not (ends and self.classes), "both a scale and classes are given; labels are numbers or classes, give one."
        )
        check(
            len(self.classes) != 1 and len(set(self.classes)) == len(self.classes),
            f"the classes are {', '.join(self.classes)}; give two or more, each once.",
        )


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of the table. ``text``: the transcript if given; ``end``: None for the end of the file; ``language``: "" if
    not given."""

    line: int
    id: str
    file: str
    label: float | None
    split: str
    text: str | None = None
    start: float = 0.0
    end: float | None = None
    group: str = ""
    language: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """The rows in the order of the table, what is known of the corpus they make, and what the user should know."""

    items: tuple[Item, ...]
    facts: CorpusFacts
    notes: tuple[str, ...] = ()


@dataclass
class _Table:
    """The rows as read, each with its line, and the faults found so far (line, sentence)."""

    name: str
    rows: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    faults: list[tuple[int, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, line: int, column: str, sentence: str) -> None:
        self.faults.append((line, f"{self.name} line {line}, column {column}: {sentence}"))

    def raise_faults(self) -> None:
        told = [sentence for _, sentence in sorted(self.faults, key=lambda fault: fault[0])]
        if len(told) > MOST_FAULTS:
            told[MOST_FAULTS:] = [
                f"{self.name}: and {len(told) - MOST_FAULTS} more faults like these; correct these first."
            ]
        if told:
            raise ConfigError(told)


def read_worklist(folder: Path, labels: Path, *, settings: LabelSettings | None = None) -> WorkList:
    """The work that the table ``labels`` asks for in ``folder``.

    Without a column ``split``, whole groups (files where there is no column ``group``) are drawn by the SHA-256 of their
    names, 15 % of the clips each for valid and test. Raises ``ConfigError`` with a sentence for each fault, naming line
    and column, and ``DataError`` where there is no such folder or table.
    """
    settings = settings or LabelSettings()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of the clips that {labels.name} names.")
    table = _read(labels)
    ids = _ids(table)
    values, task = _labels(table, settings)
    splits = _splits(table)
    items = tuple(
        _item(table, line, row, id=name, label=value, split=split)
        for (line, row), name, value, split in zip(table.rows, ids, values, splits, strict=True)
    )
    table.raise_faults()
    if not any((folder / item.file).is_file() for item in items):
        raise DataError(
            f"none of the {len(items)} files of {labels.name} is in {folder}, such as {items[0].file}; "
            "the column file is relative to the folder."
        )
    languages = {item.language or settings.language for item in items}
    language = languages.pop() if len(languages) == 1 else SEVERAL_LANGUAGES
    assert task is not None  # otherwise there were faults
    for note in table.notes:
        log.warning("%s", note)
    facts = folder_facts(task, language=language, source=settings.source, licence=settings.licence)
    return WorkList(items=items, facts=facts, notes=tuple(table.notes))


# ---- the file


def _read(path: Path) -> _Table:
    table = _Table(path.name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            table.columns = tuple(name.strip() for name in reader.fieldnames or ())
            reader.fieldnames = list(table.columns)
            for row in reader:
                _add(table, reader.line_num, row)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give a CSV file with the columns {', '.join(REQUIRED)}.") from None
    except (OSError, csv.Error, UnicodeDecodeError) as fault:
        raise DataError(f"{path} is no readable CSV file in UTF-8 ({fault}); save it as one.") from fault
    _check_columns(table)
    if not table.rows:
        raise DataError(f"{path.name} has no rows; give one row a clip.")
    return table


def _add(table: _Table, line: int, row: Mapping[str | None, str | None]) -> None:
    cells = {name: (value or "").strip() for name, value in row.items() if name is not None}
    if None in row:
        table.fault(line, table.columns[-1], "The row has more cells than the heading; quote texts that hold commas.")
    elif None in row.values():
        table.fault(
            line, table.columns[-1], "The row has fewer cells than the heading; leave empty cells, not missing ones."
        )
    table.rows.append((line, cells))


def _check_columns(table: _Table) -> None:
    """A missing or doubled column, or one that is nearly ours, ends the reading: all else would follow from it."""
    faults = []
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        found = ", ".join(table.columns) or "none"
        hint = " Separate columns by commas." if len(table.columns) == 1 else ""
        faults.append(
            f"{table.name} line 1: there is no column {' and '.join(missing)}; its columns are {found}.{hint}"
        )
    for name, count in Counter(table.columns).items():
        if count > 1:
            faults.append(f"{table.name} line 1, column {name}: it is there {count} times; keep one.")
    unknown = [name for name in table.columns if name not in COLUMNS]
    for name in unknown:
        hint = did_you_mean(name.lower(), [column for column in COLUMNS if column not in table.columns])
        if hint:
            faults.append(f"{table.name} line 1, column {name}: there is no such column{hint}")
    if faults:
        raise ConfigError(faults)
    if unknown:
        table.notes.append(
            f"{table.name}: the column {', '.join(unknown)} is not read; those read are {', '.join(COLUMNS)}."
        )


# ---- one row


def _item(table: _Table, line: int, row: Mapping[str, str], *, id: str, label: float | None, split: str) -> Item:
    start, end = _seconds(table, line, row, "start"), _seconds(table, line, row, "end")
    if start is not None and end is not None and end <= start:
        table.fault(line, "end", f"The clip ends at {end:g} s and starts at {start:g} s; it must end later.")
    return Item(
        line=line,
        id=id,
        file=_file(table, line, row),
        label=label,
        split=split,
        text=row.get("text") or None,
        start=start or 0.0,
        end=end,
        group=_group(row),
        language=row.get("language", ""),
    )


def _group(row: Mapping[str, str]) -> str:
    """Who must not be in two splits: the group, or else the file, of which several clips may be cut."""
    return row.get("group") or row["file"]


def _file(table: _Table, line: int, row: Mapping[str, str]) -> str:
    path = PurePosixPath(row["file"])
    if not row["file"]:
        table.fault(line, "file", "It is empty; give the file of the clip, relative to the folder.")
    elif path.is_absolute() or ".." in path.parts:
        table.fault(line, "file", f"'{path}' is not below the folder; give files relative to it.")
    return str(path)


def _seconds(table: _Table, line: int, row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    value = _number(text)
    if value is None or value < 0:
        table.fault(line, column, f"'{text}' is no time; give seconds from 0, such as 12.5.")
        return None
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _ids(table: _Table) -> list[str]:
    """The column ``id``, or the file without its suffix, with its span where one is given."""
    ids: list[str] = []
    lines: dict[str, int] = {}
    for line, row in table.rows:
        span = "-".join(row.get(name, "") for name in ("start", "end")).rstrip("-")
        default = str(PurePosixPath(row["file"]).with_suffix("")) if PurePosixPath(row["file"]).name else row["file"]
        name = row.get("id") or default + (f"@{span}" if span else "")
        if name in lines:
            what = (
                "give each clip an id of its own."
                if row.get("id")
                else "give a column id, for it was made of the file."
            )
            table.fault(line, "id", f"'{name}' is the id of line {lines[name]} too; {what}")
        lines.setdefault(name, line)
        ids.append(name)
    return ids


# ---- labels


def _labels(table: _Table, settings: LabelSettings) -> tuple[list[float | None], Task | None]:
    """Numbers or indices of classes by row (None: unlabelled), and the task; no task where there are faults."""
    given = [row["label"] for _, row in table.rows]
    unlabelled = given.count("")
    if unlabelled == len(given):
        table.fault(table.rows[0][0], "label", "No clip has a label; give a number or a class for each.")
        return [None] * len(given), None
    if unlabelled:
        table.notes.append(f"{table.name}: {unlabelled} of {len(given)} clips have no label; they are kept unlabelled.")
    numbers = [_number(text) for text in given]
    found = sum(value is not None for value in numbers)
    if settings.classes or (found == 0 and settings.low is None and settings.high is None):
        return _classes(table, given, settings)
    if 2 * found < len(given) - unlabelled:
        return _mixed(table, given, numbers, odd="number")
    if found < len(given) - unlabelled:
        return _mixed(table, given, numbers, odd="word")
    return _scale(table, numbers, settings)


def _mixed(
    table: _Table, given: Sequence[str], numbers: Sequence[float | None], *, odd: str
) -> tuple[list[float | None], None]:
    """A fault for each label of the kind that fewer have."""
    most = "words" if odd == "number" else "numbers"
    for (line, _), text, value in zip(table.rows, given, numbers, strict=True):
        if text and (value is not None) == (odd == "number"):
            kind = "a finite number" if odd == "word" else "a class"
            what = f"'{text}' is not {kind}" if odd == "word" else f"'{text}' is a number"
            table.fault(line, "label", f"{what}, and most labels are {most}; give one kind throughout.")
    return [None] * len(given), None


def _classes(table: _Table, given: Sequence[str], settings: LabelSettings) -> tuple[list[float | None], Task | None]:
    classes = settings.classes or tuple(sorted({text for text in given if text}))
    place = {name: float(index) for index, name in enumerate(classes)}
    for (line, _), text in zip(table.rows, given, strict=True):
        if text and text not in place:
            hint = did_you_mean(text, classes)
            table.fault(line, "label", f"'{text}' is none of the classes {', '.join(classes)}{hint}")
    if len(classes) < 2:
        table.fault(table.rows[0][0], "label", f"All labels are '{classes[0]}'; two classes or more can be told apart.")
        return [None] * len(given), None
    return [place.get(text) for text in given], Classification(classes)


def _scale(
    table: _Table, numbers: Sequence[float | None], settings: LabelSettings
) -> tuple[list[float | None], Task | None]:
    known = [value for value in numbers if value is not None]
    low = min(known) if settings.low is None else settings.low
    high = max(known) if settings.high is None else settings.high
    for (line, _), value in zip(table.rows, numbers, strict=True):
        if value is not None and not low <= value <= high:
            table.fault(line, "label", f"{value:g} lies outside the scale of {low:g} to {high:g}; correct one of them.")
    if low >= high:
        table.fault(table.rows[0][0], "label", f"All labels are {low:g}; give the ends of their scale, low and high.")
        return list(numbers), None
    return list(numbers), Regression(low, high)


# ---- splits


def _splits(table: _Table) -> list[str]:
    given = [row.get("split", "") for _, row in table.rows]
    if not any(given):
        return _drawn(table)
    for (line, _), split in zip(table.rows, given, strict=True):
        if split not in SPLITS:
            found = f"'{split}' is no split" if split else "It is empty, and other rows have one"
            hint = did_you_mean(split, SPLITS)
            table.fault(line, "split", f"{found}; give {', '.join(SPLITS)}, or leave the whole column out{hint}.")
    shared = _shared(table, given)
    if shared:
        table.notes.append(
            f"{table.name}: {len(shared)} groups have clips in several splits, such as {shared[0]}, so scores on test will "
            "be too good; keep a group in one split."
        )
    return given


def _shared(table: _Table, splits: Sequence[str]) -> list[str]:
    found: dict[str, set[str]] = {}
    for (_, row), split in zip(table.rows, splits, strict=True):
        found.setdefault(_group(row), set()).add(split)
    return [group for group, names in found.items() if len(names) > 1]


def _drawn(table: _Table) -> list[str]:
    """Whole groups to test, then to valid, until each has its share; the same on every machine."""
    count = Counter(_group(row) for _, row in table.rows)
    if len(count) < len(SPLITS):
        table.fault(
            table.rows[0][0], "group",
            f"There are clips of {len(count)} groups, and each of {', '.join(SPLITS)} needs one; give a column split.",
        )  # fmt: skip
        return ["train"] * len(table.rows)
    order = sorted(count, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    share, splits = HELD_OUT * len(table.rows), {}
    for split in ("test", "valid"):
        taken = 0
        while taken < share and len(order) > (2 if split == "test" else 1):
            group = order.pop()
            splits[group] = split
            taken += count[group]
    return [splits.get(_group(row), "train") for _, row in table.rows]
