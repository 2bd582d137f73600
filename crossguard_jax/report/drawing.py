"""How every plot looks, and how it becomes bytes: matplotlib's object-oriented interface only.

Colours are Okabe and Ito's, which colour-blind readers tell apart; line styles and hatches repeat
what colour says, for a grey printer.
"""

import io
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crossguard_jax.report.text import printable

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6B6B6B"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 1)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++", "ooo")

DPI = 200

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, ``DPI`` dots an inch; what is drawn of it then is laid out alike."""
    drawn = _saved(figure, "png", dpi=DPI, metadata={"Software": None})
    figure.set_layout_engine("none")
    return drawn


def pdf(figure: Figure) -> bytes:
    """The figure as PDF bytes (vector graphics, fonts embedded as TrueType)."""
    return _saved(figure, "pdf", metadata={"CreationDate": None, "Producer": None})


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws under our style and leaves the process's own settings as they were."""

    @wraps(draw)
    def drawn(*args: object, **kwargs: object) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def panels(
    rows: int, columns: int, size: tuple[float, float], share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches and its axes, row by row; ``share`` gives all the same scales."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, list(axes.flat)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; the HTML report shows it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def plain(name: str) -> str:
    """A name that matplotlib does not read as a formula, nor as a hidden legend entry."""
    return printable(name).replace("$", r"\$").lstrip("_") or " "
