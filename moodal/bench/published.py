"""Published numbers: what a paper prints, where, and how its protocol differs. Read from published.yaml and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from moodal.bench.names import known_metric
from moodal.core.errors import DataError

#: What may differ between protocols, and its column title.
PROTOCOL: Mapping[str, str] = {
    "text": "Text",
    "features": "Audio and vision",
    "explanations": "Explanations",
    "selection": "Epoch chosen by",
    "seeds": "Seeds",
}


@dataclass(frozen=True)
class Published:
    """One row of a paper's table. ``scores``: shares where it prints per cent; ``protocol``: keys of ``PROTOCOL``."""

    table: str
    corpora: tuple[str, ...]
    name: str
    ours: str  # what the method here calls this row
    method: str | None
    scores: Mapping[str, float]
    protocol: Mapping[str, str]
    source: str  # short, for a column
    citation: str  # in full


def published(corpus: str, *, table: str = "results") -> list[Published]:
    """Rows that speak of ``corpus``, in the order of the paper; empty if there are none."""
    return [
        row for row in load(Path(__file__).with_name("published.yaml")) if row.table == table and corpus in row.corpora
    ]


@cache
def load(file: Path) -> tuple[Published, ...]:
    """All rows of a file in the form of published.yaml. Raises ``DataError`` naming the row at fault."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as fault:
        raise DataError(f"{file} cannot be read ({str(fault).splitlines()[0]}); repair it.") from fault
    parts = content if isinstance(content, dict) else {}
    if not all(
        isinstance(parts.get(name), kind) for name, kind in (("sources", dict), ("protocols", dict), ("tables", list))
    ):
        raise DataError(
            f"{file} must hold the mappings 'sources' and 'protocols' and the list 'tables'; add what is missing."
        )
    return tuple(_row(file, parts, table, row) for table in parts["tables"] for row in table.get("rows", ()))


def _row(file: Path, parts: Mapping[str, Any], table: Mapping[str, Any], row: Mapping[str, Any]) -> Published:
    name, place = (
        str(row.get("name")),
        f"{file.name}, table {table.get('name')} of {table.get('corpora')}, row {row.get('name')}",
    )
    unknown = set(row) - {"name", "ours", "method", "protocol", "scores"} or set(table) - _TABLE_KEYS
    if unknown:
        raise DataError(f"{place}: there is no key {', '.join(sorted(unknown))}; remove it.")
    for kind, key in (("sources", table.get("source")), ("protocols", row.get("protocol"))):
        if key not in parts[kind]:
            raise DataError(f"{place}: '{key}' is not among {kind} ({', '.join(parts[kind])}); add it there.")
    protocol = {"features": str(table.get("features", "not stated"))} | parts["protocols"][row["protocol"]]
    if set(protocol) - set(PROTOCOL):
        raise DataError(f"{place}: protocol {row['protocol']} has keys other than {', '.join(PROTOCOL)}; remove them.")
    source = parts["sources"][table["source"]]
    return Published(
        table=str(table.get("name")),
        corpora=tuple(table.get("corpora", ())),
        name=name,
        ours=str(row.get("ours", name)),
        method=row.get("method"),
        scores=_scores(place, row.get("scores"), set(table.get("percent", ()))),
        protocol={key: str(protocol.get(key, "not stated")) for key in PROTOCOL},
        source=str(source["short"]),
        citation=f"{source['short']}: {source['citation']} {source['link']}",
    )


_TABLE_KEYS = {"name", "corpora", "source", "percent", "features", "rows"}


def _scores(place: str, scores: Any, percent: set[str]) -> dict[str, float]:
    if not isinstance(scores, dict) or not scores:
        raise DataError(f"{place}: there are no scores; give at least one metric and its number.")
    for key, value in scores.items():
        if not known_metric(key):
            raise DataError(f"{place}: there is no metric '{key}'; use the keys of bench/names.py.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"{place}: {key} is {value!r}, a number was expected.")
        low, high = (0, 100) if key in percent else (-1 if key == "corr" else 0, 100 if key == "mae" else 1)
        if not low <= value <= high:
            raise DataError(
                f"{place}: {key} is {value}, expected {low} to {high}; is it listed under 'percent' as printed?"
            )
    return {key: value / 100 if key in percent else float(value) for key, value in scores.items()}
