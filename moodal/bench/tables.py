"""Tables of results: one form in memory, written as Markdown, CSV, LaTeX (booktabs) or HTML."""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moodal.core.errors import check

Better = Literal["high", "low"]


@dataclass(frozen=True)
class Number:
    """One value per seed.

    ``planned``: seeds that were to be run; ``low`` and ``high``: an interval; ``note``: a remark; ``form``: a column
    whose ``decimals``, ``scale`` and ``signed`` count instead of those of the column it stands in.
    """

    values: tuple[float, ...]
    planned: int | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    form: "Column | None" = None

    @property
    def known(self) -> tuple[float, ...]:
        """The values that are numbers."""
        return tuple(value for value in self.values if math.isfinite(value))

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN if a seed has no value, because a mean over the others is another number."""
        complete = bool(self.values) and len(self.known) == len(self.values)
        return statistics.fmean(self.values) if complete else float("nan")

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (N - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 and math.isfinite(self.mean) else None


@dataclass(frozen=True)
class Column:
    """A column; numbers are shown times ``scale`` with ``decimals`` places. ``better`` None: no best one is marked."""

    key: str
    title: str
    better: Better | None = None
    decimals: int = 3
    scale: float = 1.0
    signed: bool = False


@dataclass(frozen=True)
class Row:
    """A row; ``cells`` by column key. Rows with ``competes`` False (other protocols) are never marked as best."""

    cells: Mapping[str, Number | str | None]
    competes: bool = True


@dataclass(frozen=True)
class Table:
    """A table. Columns may hold text or numbers; an absent cell is shown as a dash."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        check(len(set(keys)) == len(keys), f"A table has the columns {', '.join(keys)}; each may be there once.")

    def column(self, key: str) -> Column:
        """The column called ``key``."""
        return next(column for column in self.columns if column.key == key)

    def best(self, column: Column) -> frozenset[int]:
        """Rows with the best mean among those that compete, ties included; none where fewer than two compete."""
        if column.better is None:
            return frozenset()
        means = {
            place: round(cell.mean * column.scale, column.decimals)
            for place, row in enumerate(self.rows)
            if row.competes and isinstance(cell := row.cells.get(column.key), Number) and math.isfinite(cell.mean)
        }
        if len(means) < 2:
            return frozenset()
        top = max(means.values()) if column.better == "high" else min(means.values())
        return frozenset(place for place, value in means.items() if value == top)

    def markdown(self) -> str:
        """GitHub's table syntax."""
        head = [_markdown(column.title) for column in self.columns]
        rule = ["---:" if self._numeric(column) else "---" for column in self.columns]
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *self._body(_MARKDOWN_FORM))]
        before = [_markdown(self.caption), ""] if self.caption else []
        after = ["", *(f"- {_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n".join([*before, *lines, *after]) + "\n"

    def csv(self) -> str:
        """For programs: unscaled numbers in full, with ``<key>_sd`` and ``<key>_seeds`` beside each mean."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in self._csv_names(column)])
        for row in self.rows:
            writer.writerow([cell for column in self.columns for cell in self._csv_cells(column, row)])
        return stream.getvalue()

    def latex(self) -> str:
        """A ``table`` with ``booktabs`` rules; needs ``\\usepackage{booktabs}``."""
        head = " & ".join(_latex(column.title) for column in self.columns)
        places = "".join("r" if self._numeric(column) else "l" for column in self.columns)
        lines = [rf"\begin{{tabular}}{{{places}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        lines += [" & ".join(cells) + r" \\" for cells in self._body(_LATEX_FORM)]
        lines += [r"\bottomrule", r"\end{tabular}"]
        caption = " ".join([self.caption, *self.notes]).strip()
        after = [rf"\caption{{{_latex(caption)}}}"] if caption else []
        return "\n".join([r"\begin{table}", r"\centering", *lines, *after, r"\end{table}"]) + "\n"

    def html(self) -> str:
        """A ``<table>``; every text in it is escaped. Intervals and remarks go below their number."""
        head = "".join(f"<th{self._align(column)}>{html.escape(column.title)}</th>" for column in self.columns)
        rows = "".join(
            "<tr>"
            + "".join(f"<td{self._align(column)}>{cell}</td>" for column, cell in zip(self.columns, cells))
            + "</tr>"
            for cells in self._body(_HTML_FORM)
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in self.notes)
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<div class='scroll'>{table}</div>{notes}"

    def _numeric(self, column: Column) -> bool:
        return any(isinstance(row.cells.get(column.key), Number) for row in self.rows)

    def _align(self, column: Column) -> str:
        return " class='number'" if self._numeric(column) else ""

    def _body(self, form: "_Form") -> list[list[str]]:
        best = {column.key: self.best(column) for column in self.columns}
        return [
            [_cell(row.cells.get(column.key), column, form, best=place in best[column.key]) for column in self.columns]
            for place, row in enumerate(self.rows)
        ]

    def _csv_names(self, column: Column) -> list[str]:
        if not self._numeric(column):
            return [column.key]
        interval = [f"{column.key}_low", f"{column.key}_high"] if self._interval(column) else []
        return [column.key, f"{column.key}_sd", f"{column.key}_seeds", *interval]

    def _csv_cells(self, column: Column, row: Row) -> list[str]:
        cell, width = row.cells.get(column.key), len(self._csv_names(column))
        if not isinstance(cell, Number):
            return [_harmless(cell or ""), *[""] * (width - 1)]
        interval = [_full(cell.low), _full(cell.high)] if self._interval(column) else []
        return [_full(cell.mean), _full(cell.deviation), str(len(cell.values)), *interval]

    def _interval(self, column: Column) -> bool:
        cells = (row.cells.get(column.key) for row in self.rows)
        return any(isinstance(cell, Number) and cell.low is not None for cell in cells)


def _full(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _harmless(text: str) -> str:
    """Text that a spreadsheet would run as a formula is quoted."""
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and len(text) > 1) else text


@dataclass(frozen=True)
class _Form:
    """How a format writes a cell."""

    escape: Callable[[str], str]
    bold: str
    small: str
    plus_minus: str = "\N{PLUS-MINUS SIGN}"
    dash: str = "\N{EN DASH}"
    minus: str = "\N{MINUS SIGN}"


def _cell(cell: Number | str | None, column: Column, form: _Form, *, best: bool) -> str:
    """A cell in one format: the number in bold if it is the best, then its interval and remarks."""
    if not isinstance(cell, Number):
        return form.escape(cell) if cell else form.dash
    column = cell.form or column
    text = _mean(cell, column, form)
    after = " ".join(filter(None, [_interval(cell, column, form), form.escape(_remark(cell))]))
    return (form.bold.format(text) if best else text) + (form.small.format(after) if after else "")


def _mean(cell: Number, column: Column, form: _Form) -> str:
    if not cell.values:
        return form.dash
    if not math.isfinite(cell.mean):
        return "not defined"
    spread = (
        "" if cell.deviation is None else f" {form.plus_minus} {_write(cell.deviation, column, form, signed=False)}"
    )
    return _write(cell.mean, column, form, signed=column.signed) + spread


def _interval(cell: Number, column: Column, form: _Form) -> str:
    if cell.low is None or cell.high is None or not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    low, high = (_write(end, column, form, signed=column.signed) for end in (cell.low, cell.high))
    return f"[{low}, {high}]"


def _write(value: float, column: Column, form: _Form, *, signed: bool) -> str:
    """A number in the places of its column, never as minus zero."""
    text = f"{value * column.scale:.{column.decimals}f}"
    text = text.removeprefix("-") if float(text) == 0 else text
    return ("+" if signed and float(text) > 0 else "") + text.replace("-", form.minus)


def _remark(cell: Number) -> str:
    remarks = [cell.note] if cell.note else []
    if cell.planned is not None and len(cell.values) < cell.planned:
        remarks.append(f"{len(cell.values)} of {cell.planned} seeds")
    return f"({'; '.join(remarks)})" if remarks else ""


_MARKDOWN = str.maketrans(
    {
        "|": "\\|",
        "*": "\\*",
        "_": "\\_",
        "`": "\\`",
        "[": "\\[",
        "]": "\\]",
        "<": "&lt;",
        ">": "&gt;",
        "\\": "\\\\",
        "\n": " ",
        "\r": " ",
    }
)
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "→": r"$\rightarrow$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "\N{MINUS SIGN}": "$-$",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "\n": " ",
    }
)


def _markdown(text: str) -> str:
    return text.translate(_MARKDOWN)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


_MARKDOWN_FORM = _Form(_markdown, bold="**{}**", small=" {}")
_LATEX_FORM = _Form(_latex, bold=r"\textbf{{{}}}", small=" {}", plus_minus=r"$\pm$", dash="--", minus="$-$")
_HTML_FORM = _Form(html.escape, bold="<strong>{}</strong>", small="<small>{}</small>")


def seed_cells(
    by_seed: Sequence[Mapping[str, float | None]], keys: Sequence[str], *, planned: int | None = None
) -> dict[str, Number]:
    """Cells of ``keys`` from one mapping of scores per seed; a null or absent value is NaN."""
    columns = {key: [scores.get(key) for scores in by_seed] for key in keys if any(key in scores for scores in by_seed)}
    return {
        key: Number(tuple(float("nan") if value is None else float(value) for value in values), planned)
        for key, values in columns.items()
    }
