"""Curves over radii, convergence of the attacks that made them, and histograms of S_c."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Float
from crossguard_jax.report import drawing

Series = Mapping[float, Estimate]
"""A share by radius, or by the multiple of an attack's budget."""

_MARKERS = ("o", "s", "^", "D")
_BANDS = 4  # more of them hide the lines
_AXES = {"linf": "L∞ radius (grey levels of 255)", "l2": "L2 radius (pixels in [0, 1])"}


@drawing.styled
def robustness_curves(
    robust: Mapping[str, Series],
    asr: Mapping[str, Series],
    ceilings: Mapping[str, float],
    norm: str,
) -> Figure:
    """Robust accuracy and attack success rate against the radius, with bands of their intervals;
    of many systems the first two have one.

    Args:
        robust: by system's title, robust accuracy by radius.
        asr: likewise.
        ceilings: by title, the ASR of another row's picture; dotted.
        norm: ``linf`` or ``l2``.
    """
    figure, (left, right) = drawing.panels(1, 2, (6.9, 3.1))
    for i, name in enumerate(robust):
        colour = drawing.COLOURS[i % len(drawing.COLOURS)]
        for axes, series in ((left, robust[name]), (right, asr[name])):
            scale = 255 if norm == "linf" else 1
            at = {scale * epsilon: share for epsilon, share in series.items()}
            _line(axes, at, i, drawing.plain(name), band=i < 2 or len(robust) <= _BANDS)
        if name in ceilings:
            right.axhline(100 * ceilings[name], color=colour, linewidth=0.8, linestyle=":")
    for axes, label in ((left, "Robust accuracy (%)"), (right, "Attack success rate (%)")):
        axes.set(ylim=(0, 100), xlabel=_AXES[norm], ylabel=label)
        axes.grid(True)
    _legend(figure, left)
    return figure


@drawing.styled
def convergence(systems: Mapping[str, Mapping[str, Series]]) -> Figure:
    """Attack success rate against multiples of the attacks' steps and restarts.

    Args:
        systems: by title, then ``steps`` or ``restarts``, ASR by multiple.
    """
    figure, panels = drawing.panels(1, 2, (6.9, 2.8))
    for axes, what in zip(panels, ("steps", "restarts"), strict=True):
        seen: set[float] = {1.0}
        for i, (name, series) in enumerate(systems.items()):
            if shares := series.get(what):
                _line(axes, shares, i, drawing.plain(name), band=False)
                seen |= set(shares)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted(seen)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
        axes.set(ylim=(0, 100), xlabel=f"The suite's {what}", ylabel="Attack success rate (%)")
        axes.grid(True)
    _legend(figure, panels[0])
    return figure


def _line(axes: Axes, shares: Series, number: int, label: str, band: bool) -> None:
    """A line through the shares, in the look of its number: when the colours are used up, they come
    again with another line and another marker."""
    at: Sequence[float] = sorted(shares)
    value, low, high = (
        100 * np.array([getattr(shares[x], end) for x in at]) for end in ("value", "low", "high")
    )
    again, place = divmod(number, len(drawing.COLOURS))
    style: dict[str, Any] = {"color": drawing.COLOURS[place]}
    if band:
        axes.fill_between(at, low, high, alpha=0.15, linewidth=0, **style)
    line = drawing.LINES[(place + again) % len(drawing.LINES)]
    marker = _MARKERS[again % len(_MARKERS)]
    axes.plot(at, value, marker=marker, markersize=3, label=label, linestyle=line, **style)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=3)


@drawing.styled
def consistency_histograms(
    clean: Float[np.ndarray, " _"],
    panels: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]],
    cuts: Sequence[tuple[float, str]],
    bins: int = 40,
) -> Figure:
    """Where clean and attacked rows fall on S_c.

    Args:
        clean: S_c of clean rows; in every panel.
        panels: by panel's title, then by attack, S_c of attacked rows.
        cuts: the ends of the policy's branches, and what each does below.
        bins: of all values together.
    """
    figure, axes = drawing.panels(1, len(panels), (3.45 * len(panels), 3.1), share=True)
    everything = [clean, *(some for panel in panels.values() for some in panel.values())]
    ends = np.concatenate([*everything, np.array([below for below, _ in cuts])])
    edges = np.histogram_bin_edges(ends, bins)
    for panel, (title, attacks) in zip(axes, panels.items(), strict=True):
        for i, (name, scores) in enumerate({"clean": clean, **attacks}.items()):
            if scores.size:
                colour = drawing.COLOURS[i]
                style: dict[str, Any] = {"facecolor": colour, "alpha": 0.25} if i == 0 else {}
                panel.stairs(
                    100 * np.histogram(scores, edges)[0] / scores.size,
                    edges,
                    fill=i == 0,
                    edgecolor=colour,
                    linestyle=drawing.LINES[i],
                    linewidth=1.4,
                    label=drawing.plain(name),
                    **style,
                )
        for below, do in cuts:
            panel.axvline(below, color=drawing.GREY, linewidth=0.9, linestyle="--")
            panel.annotate(
                f"{do} ",
                (below, 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="top",
                fontsize=7,
                color=drawing.GREY,
            )
        panel.set(xlabel="S_c", title=title)
        panel.grid(True)
    axes[0].set_ylabel("Share of rows (%)")
    _legend(figure, axes[0])
    return figure
