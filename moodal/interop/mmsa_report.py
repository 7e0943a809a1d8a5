"""What an import found: counted once, kept in the store's manifest, printed by the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class StreamReport:
    """One array of all splits. ``lengths``: "given" in the file, "recovered" from zero frames, or from a "mask"."""

    width: int
    rows: int = 0
    empty: int = 0  # rows without a step: a missing modality
    steps: int = 0  # kept
    padding: int = 0  # left out
    shortest: int = 0  # of the rows that are not empty
    longest: int = 0
    nan: int = 0  # values found, each replaced by 0
    plus_infinity: int = 0
    minus_infinity: int = 0
    lengths: str = "recovered"
    disagreeing: int = 0  # rows whose given length leaves out frames that are not zero
    too_long: int = 0  # rows whose given length is more than the array holds

    @property
    def replaced(self) -> int:
        """Values that were no numbers and became 0."""
        return self.nan + self.plus_infinity + self.minus_infinity


@dataclass
class LabelReport:
    """The labels of all splits: range found, number of values, and the step of the grid they lie on (None: none)."""

    low: float
    high: float
    mean: float
    values: int
    step: float | None


@dataclass
class ImportReport:
    """Everything worth knowing about one imported file."""

    corpus: str
    file: str
    sha256: str
    bytes: int
    sizes: Mapping[str, int]
    published: Mapping[str, int]
    aligned: bool = False
    streams: dict[str, StreamReport] = field(default_factory=dict)
    labels: LabelReport | None = None
    texts: dict[str, int] = field(default_factory=dict)  # clips with a transcript, an explanation by role, a note
    tokens: dict[str, int] = field(default_factory=dict)  # longest row of each token stream
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, all of the report."""
        return asdict(self)

    def to_markdown(self) -> str:
        """The report as a page of Markdown."""
        lines = [
            f"# Import of {self.corpus} from {self.file}",
            "",
            f"SHA-256 `{self.sha256}`, {self.bytes:,} bytes",
            "",
        ]
        lines += [f"* **{kind}** {text}" for kind, texts in self._remarks() for text in texts] + [""]
        lines += ["| split | clips | published |", "|---|---|---|"]
        lines += [f"| {split} | {size} | {self.published.get(split, '')} |" for split, size in self.sizes.items()]
        lines += [
            "",
            "| stream | width | steps a clip | empty | NaN | +inf | -inf | lengths |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [self._stream_line(name, stream) for name, stream in self.streams.items()]
        return "\n".join([*lines, "", *self._label_lines(), *self._count_lines("texts", self.texts)]) + "\n"

    def __str__(self) -> str:
        return self.to_markdown()

    def _remarks(self) -> tuple[tuple[str, list[str]], ...]:
        return (("warning", self.warnings), ("note", self.notes))

    @staticmethod
    def _stream_line(name: str, s: StreamReport) -> str:
        return (
            f"| {name} | {s.width} | {s.shortest} to {s.longest} | {s.empty} | {s.nan} | {s.plus_infinity} "
            f"| {s.minus_infinity} | {s.lengths} |"
        )

    def _label_lines(self) -> list[str]:
        if self.labels is None:
            return []
        found = self.labels
        grid = "no regular grid" if found.step is None else f"steps of {found.step:g}"
        return [f"Labels {found.low:g} to {found.high:g}, mean {found.mean:.3f}, {found.values} values, {grid}.", ""]

    @staticmethod
    def _count_lines(title: str, counts: Mapping[str, int]) -> list[str]:
        return [f"Clips with {title}: " + ", ".join(f"{name} {count}" for name, count in counts.items()) + "."]
