"""One look for all plots: colours that colour-blind readers can tell apart, quiet axes, the same bytes every time."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: Okabe and Ito's palette, in the order in which lines and groups are drawn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B5B5B")
#: One colour per modality, everywhere.
MODALITY_COLOURS = {"text": "#0072B2", "audio": "#D55E00", "vision": "#009E73"}
INK, FAINT, GRID = "#1f2430", "#6b7280", "#e5e7eb"
#: Sequential map whose lightness is even: dark is much.
MAP = "Blues"

_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # class names and clip ids are not ours: a $ is a $
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "moodal",  # ids in the file are then the same on every run
    "svg.fonttype": "path",  # looks the same without our fonts
    "figure.constrained_layout.use": True,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with the project's plot settings, and restore the caller's."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
            for name, value in _SETTINGS.items():
                matplotlib.rcParams[name] = value  # type: ignore[index]
            return function(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches, tied to no window and to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def svg(figure: Any) -> bytes:
    """The figure as SVG; parts marked ``rasterized`` are images of 200 dots per inch inside it."""
    return _saved(figure, "svg", dpi=200, metadata={"Date": None, "Creator": None})


def png(figure: Any, *, dpi: int = 160) -> bytes:
    """The figure as PNG."""
    return _saved(figure, "png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Any, kind: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **settings)
    return stream.getvalue()
