"""Plots fit for a paper. Every function returns a ``Figure``; ``drawing`` makes bytes of it."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image, ImageOps

from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Bool, Float, Shaped
from crossguard_jax.io import images
from crossguard_jax.report import drawing
from crossguard_jax.report.examples import Example
from crossguard_jax.report.text import printable


@dataclass(frozen=True)
class Scored:
    """One system's scores and their truth: what a curve or a histogram is drawn from."""

    p_unsafe: Float[np.ndarray, " B"]
    unsafe: Bool[np.ndarray, " B"]


@drawing.styled
def roc_curves(systems: Mapping[str, Scored], lowest_fpr: float = 1e-3) -> Figure:
    """ROC curves twice: on linear axes, and with FPR on a log axis, where guards are run.

    Dotted verticals mark 1% and 5% FPR. A system without rows of both classes is left out.

    Args:
        systems: What each curve is called, and its scores.
        lowest_fpr: Where the log axis starts; false positive rates below it are drawn there.
    """
    figure, (linear, log) = drawing.panels(1, 2, (6.9, 3.1))
    for i, (name, scored) in enumerate(systems.items()):
        area = metrics.auroc(scored.p_unsafe, scored.unsafe)
        if area.n == 0:
            continue
        curve = metrics.roc_curve(scored.p_unsafe, scored.unsafe)
        label = f"{drawing.plain(name)} ({area.value:.3f})"
        style: dict[str, Any] = {
            "color": drawing.COLOURS[i % len(drawing.COLOURS)],
            "linestyle": drawing.LINES[i % len(drawing.LINES)],
        }
        linear.plot(curve.fpr, curve.tpr, label=label, clip_on=False, **style)
        log.plot(np.maximum(curve.fpr, lowest_fpr), curve.tpr, drawstyle="steps-post", **style)
    linear.plot([0, 1], [0, 1], color=drawing.GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    log.set_xscale("log")
    log.set_xlim(lowest_fpr, 1)
    log.set_xticks([t for t in (1e-3, 1e-2, 1e-1, 1) if t >= lowest_fpr])
    log.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    log.xaxis.set_minor_formatter(NullFormatter())
    for fpr in (0.01, 0.05):
        log.axvline(fpr, color=drawing.GREY, linewidth=0.8, linestyle=":")
        log.annotate(
            f" {fpr:.0%}", (fpr, 1.01), color=drawing.GREY, fontsize=7, annotation_clip=False
        )
    for axes in (linear, log):
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.grid(True)
    linear.set_xlim(0, 1)
    linear.xaxis.set_major_formatter(_PERCENT)
    linear.set_xlabel("False positive rate (%)")
    log.set_xlabel("False positive rate (%), log scale")
    linear.set_ylabel("Recall: malicious rows flagged (%)")
    if linear.get_legend_handles_labels()[0]:
        linear.legend(title="AUROC", loc="lower right", alignment="left")
    return figure


@drawing.styled
def rate_bars(
    systems: Mapping[str, Mapping[str, Estimate]], ylabel: str = "Attack success rate (%)"
) -> Figure:
    """Grouped bars of a rate per benchmark, with the whiskers of its interval.

    Args:
        systems: By system, then by benchmark, the share in [0, 1]; a missing one leaves a gap.
        ylabel: What the rate is.
    """
    names = list(dict.fromkeys(name for rates in systems.values() for name in rates))
    width = 0.8 / max(1, len(systems))
    figure, (axes,) = drawing.panels(1, 1, (min(12.0, max(3.6, 1.2 + 1.15 * len(names))), 3.1))
    for i, (system, rates) in enumerate(systems.items()):
        at = np.arange(len(names)) + (i - (len(systems) - 1) / 2) * width
        shown = [rates.get(name, Estimate.empty()) for name in names]
        _draw_bars(axes, at, width * 0.92, shown, i, drawing.plain(system))
    axes.set_xticks(range(len(names)), [_bar_label(name, systems) for name in names])
    axes.set_ylim(0, _headroom(systems))
    axes.set_ylabel(ylabel)
    axes.yaxis.grid(True)
    axes.tick_params(axis="x", length=0)
    if len(systems) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=min(4, len(names) or 1, len(systems)),
            borderaxespad=0.2,
        )
    return figure


def _draw_bars(
    axes: Axes,
    at: Float[np.ndarray, " K"],
    width: float,
    rates: Sequence[Estimate],
    number: int,
    label: str,
) -> None:
    """One system's bars at ``at``, in the look of its number, with whiskers and values."""
    value, low, high = (
        100 * np.array([getattr(e, end) for e in rates]) for end in ("value", "low", "high")
    )
    axes.bar(
        at,
        value,
        width,
        label=label,
        color=drawing.COLOURS[number % len(drawing.COLOURS)],
        hatch=drawing.HATCHES[number % len(drawing.HATCHES)],
        edgecolor="white",
        linewidth=0.5,
    )
    whiskers = np.nan_to_num(np.stack([value - low, high - value])).clip(0)
    kept = np.isfinite(value)
    axes.errorbar(
        at[kept],
        value[kept],
        whiskers[:, kept],
        fmt="none",
        ecolor="#222222",
        elinewidth=0.9,
        capsize=2.2,
    )
    for x, y, top in zip(at[kept], value[kept], np.nan_to_num(high)[kept], strict=True):
        axes.annotate(
            f"{y:.1f}",
            (x, max(y, top)),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=6.5 if width > 0.18 else 5.5,
            color="#222222",
        )


@drawing.styled
def score_histograms(systems: Mapping[str, Scored], threshold: float, bins: int = 40) -> Figure:
    """Where benign and malicious rows fall on [0, 1], a panel per system, with the threshold.

    The vertical axis is the share of each class on a log scale: a good guard puts nearly all its
    rows at the two ends, and the few in between are the interesting ones.
    """
    columns = min(3, max(1, len(systems)))
    rows = -(-max(1, len(systems)) // columns)
    size = (max(3.6, 2.6 * columns), 0.6 + 2.2 * rows)
    figure, panels = drawing.panels(rows, columns, size, share=True)
    edges = np.linspace(0, 1, bins + 1)
    smallest = min((s.unsafe.size for s in systems.values() if s.unsafe.size), default=1)
    for axes, (name, scored) in zip(panels, systems.items(), strict=False):
        for label, rows_of, fill, edge, hatch in (
            ("safe rows", ~scored.unsafe, _SKY_TINT, drawing.BLUE, ""),
            # Hatched without a fill, so that neither class hides the other.
            ("unsafe rows", scored.unsafe, "none", drawing.VERMILLION, "/////"),
        ):
            counts, _ = np.histogram(scored.p_unsafe[rows_of], edges)
            if not counts.any():
                continue
            share = 100 * counts / counts.sum()
            axes.stairs(
                share,
                edges,
                fill=True,
                facecolor=fill,
                edgecolor=edge,
                hatch=hatch,
                linewidth=1.1,
                label=label,
            )
        axes.axvline(
            threshold, color=drawing.BLACK, linewidth=1.0, linestyle="--", label="threshold"
        )
        axes.set_yscale("log")
        axes.set_ylim(max(1e-3, 50 / smallest), 150)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0, 1)
        axes.set_title(drawing.plain(name), loc="left")
        axes.set_xlabel("p(unsafe | picture, text)")
    for axes in panels[::columns]:
        axes.set_ylabel("Share of the class (%), log")
    for axes in panels[len(systems) :]:
        axes.set_visible(False)
    if systems:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


@drawing.styled
def loss_curves(
    runs: Mapping[str, tuple[Shaped[np.ndarray, " K"], Float[np.ndarray, " K"]]],
    ylabel: str = "Training loss (nats)",
    xlabel: str = "Optimizer step",
) -> Figure:
    """Loss against step, each run pale as measured and bold as a centred moving average.

    The average spans one thirtieth of the run; unlike an exponential one it does not lag behind.

    Args:
        runs: By name, the steps and the losses at them.
        ylabel: The quantity and its unit.
        xlabel: What is counted.
    """
    figure, (axes,) = drawing.panels(1, 1, (4.6, 3.0))
    for i, (name, (steps, losses)) in enumerate(runs.items()):
        colour = drawing.COLOURS[i % len(drawing.COLOURS)]
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.7)
        smooth = _moving_average(losses)
        line = drawing.LINES[i % len(drawing.LINES)]
        axes.plot(steps, smooth, color=colour, linestyle=line, label=drawing.plain(name))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(True)
    if runs:
        axes.legend(loc="best")
    return figure


@drawing.styled
def dot_rows(
    panels: Mapping[str, Mapping[str, tuple[Estimate, Sequence[float]]]],
    names: Sequence[str],
    columns: int = 3,
) -> Figure:
    """Rows from the top down, a panel per figure: a mean with its interval, and single values.

    A dotted line through the first row's mean, where it has one, is what others are compared with
    by eye.

    Args:
        panels: By figure, then by row, the estimate and what it is the mean of; a row may lack any.
        names: Of all rows.
        columns: Panels side by side, at most.
    """
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (2.0 + 2.3 * columns, lines * (0.75 + 0.24 * len(names)))
    figure, axes = drawing.panels(lines, columns, size)
    for i, (title, rows) in enumerate(panels.items()):
        _draw_dots(axes[i], rows, names, drawing.plain(title), labelled=i % columns == 0)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    return figure


def _draw_dots(
    axes: Axes,
    rows: Mapping[str, tuple[Estimate, Sequence[float]]],
    names: Sequence[str],
    title: str,
    labelled: bool,
) -> None:
    for y, name in enumerate(names):
        estimate, values = rows.get(name, (Estimate.empty(), []))
        axes.plot(values, [y] * len(values), ".", color=drawing.SKY, markersize=4, zorder=1)
        ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        whiskers = np.nan_to_num(ends).clip(0)
        colour = drawing.BLACK if y == 0 else drawing.BLUE
        axes.errorbar(estimate.value, y, xerr=whiskers, fmt="o", color=colour, markersize=4)
    if names and math.isfinite(first := rows.get(names[0], (Estimate.empty(),))[0].value):
        axes.axvline(first, color=drawing.GREY, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    labels = [drawing.plain(short(name, 48)) for name in names] if labelled else []
    axes.set_yticks(range(len(names)), labels)
    axes.set_title(title, loc="left", fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.grid(True)


@drawing.styled
def example_grid(examples: Sequence[Example], columns: int = 4) -> Figure:
    """Pictures with their text, true label, p_unsafe and verdict; wrong verdicts stand out.

    A wrong verdict has a thick vermillion frame and a cross, a right one a thin green frame and a
    tick. A picture that cannot be decoded, or is absent, leaves a grey field that says so.
    """
    columns = max(1, min(columns, len(examples)))
    rows = max(1, -(-len(examples) // columns))
    width, height = columns * _CELL[0] + _GAP, rows * _CELL[1] + _GAP
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    side = _CELL[0] - _GAP
    for i, example in enumerate(examples):
        row, column = divmod(i, columns)
        left = _GAP + column * _CELL[0]
        bottom = height - _GAP - row * _CELL[1] - _TITLE - side
        place = (left / width, bottom / height, side / width, side / height)
        _draw_example(figure.add_axes(place), example)
    return figure


def _draw_example(axes: Axes, example: Example) -> None:
    picture = _pixels(example.picture)
    if isinstance(picture, str):
        axes.set_facecolor("#EEEEEE")
        axes.text(0.5, 0.5, picture, ha="center", va="center", color=drawing.GREY, fontsize=8)
    else:
        # Nearest keeps the edges of a 32-pixel picture; a photograph wants smoothing.
        small = picture.shape[0] <= 128
        axes.imshow(picture, interpolation="nearest" if small else "antialiased")
    axes.set(xticks=[], yticks=[])
    colour, mark = (drawing.GREEN, "✓") if example.right else (drawing.VERMILLION, "✗")
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.2 if example.right else 2.8)
    axes.set_title(f"{mark} {example.outcome}", color=colour, fontsize=8.5, pad=4, loc="left")
    lines = textwrap.wrap(printable(example.text), 30, max_lines=4, placeholder=" …")
    words = f"truth {example.truth}, verdict {example.verdict}\np(unsafe) = {example.p_unsafe:.3f}"
    below: dict[str, Any] = {
        "transform": axes.transAxes,
        "va": "top",
        "ha": "left",
        "parse_math": False,
    }
    axes.text(0, -0.05, words, fontsize=7, color="#222222", linespacing=1.25, **below)
    axes.text(0, -0.23, "\n".join(lines), fontsize=7, style="italic", linespacing=1.15, **below)


def _pixels(picture: bytes | None) -> np.ndarray | str:
    """The picture in a white square no larger than a panel needs, or words in its place."""
    if picture is None:
        return "no picture"
    try:
        decoded = images.decode(picture, "example")
    except UserError:
        return "unreadable picture"
    decoded.thumbnail((512, 512), Image.Resampling.LANCZOS)
    side = max(decoded.size)
    return np.asarray(ImageOps.pad(decoded, (side, side), color="white"))


def _bar_label(name: str, systems: Mapping[str, Mapping[str, Estimate]]) -> str:
    counts = [rates[name].n for rates in systems.values() if name in rates]
    least, most = min(counts), max(counts)
    n = f"n = {least:,}" + (f" to {most:,}" if most > least else "")
    return "\n".join([*textwrap.wrap(drawing.plain(name).replace("_", " "), 15), n])


def _headroom(systems: Mapping[str, Mapping[str, Estimate]]) -> float:
    tops = [e.high for rates in systems.values() for e in rates.values() if e.n]
    return min(108.0, max(5.0, 112 * max(tops, default=0.0)))


def _moving_average(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Mean over a window centred on each value, cut short at the ends."""
    reach = values.size // 60
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    at = np.arange(values.size)
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, values.size)
    return (sums[last] - sums[first]) / (last - first)


# Inches: an example's cell (width, height), the gap around it, the line above its picture.
_CELL, _GAP, _TITLE = (1.75, 2.72), 0.12, 0.22
_SKY_TINT = "#BFDDF0"
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g}")
