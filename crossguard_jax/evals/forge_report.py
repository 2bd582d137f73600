"""The section of a report on a forge: what it wrote, from what, and how it learned to."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.impforge.forge import Forged
from crossguard_jax.impforge.rewards.judges import REWARDS
from crossguard_jax.io import images
from crossguard_jax.report import drawing, plots
from crossguard_jax.report.blocks import Block, Plot, Section, Text
from crossguard_jax.report.tables import Metric, Table

_INTRO = (
    "Each query names a thing and plainly means harm. A harmless picture of the thing was matched "
    "to it, and a rewriter, trained by PPO under three rewards, put it in words that mean the same "
    "beside the picture and are harmless alone. Benign twins are harmless queries on the same "
    "pictures, rewritten alike. The guard learned its implicit rows from these."
)
_VARIETY = {
    "category_entropy": "Entropy of the categories (1: all alike)",
    "self_bleu": "Self-BLEU (lower: more varied)",
    "mean_distance": "Mean distance of two texts (1 less cosine)",
    "nearest_distance": "Distance to the nearest other text",
    "vendi": "Vendi score (as many texts, all different, would score alike)",
    "cells_filled": "Share of category and keyword pairs with a text",
    "distinct_texts": "Share of texts that are written once",
}


@dataclass(frozen=True)
class Rewrite:
    """A forged row to look at: its picture, the query it came from, and what was written."""

    picture: bytes
    query: str
    text: str
    label: str


def forge_section(
    forged: Forged,
    learned: Sequence[Mapping[str, Any]],
    shown: Sequence[Rewrite],
    truth: Mapping[str, Estimate] | None = None,
) -> Section:
    """Counts, variety, learning curves and examples of a forge.

    Args:
        forged: what became of the candidates.
        learned: the run's metrics, a row an iteration.
        shown: rows to look at.
        truth: shares of the unsafe rows by what they really mean, where somebody knows.
    """
    blocks: list[Block] = [Text(_INTRO), _counts(forged), _variety(forged)]
    if truth:
        caption = (
            "What the rows labelled unsafe really mean, by the small world's own grammar, which "
            "nothing was trained on."
        )
        names = {name: name.replace("_", " ") for name in truth}
        rows = tuple((names[k], Metric(f"forge.truth.{k}", v)) for k, v in truth.items())
        blocks.append(Table(("Of the rows labelled unsafe", "%"), rows, caption))
    blocks += [_curves(learned), _kl(learned)]
    blocks.append(Plot.of("forge_examples", grid(shown), "Forged rows, drawn at random."))
    return Section("How the implicit rows were forged", tuple(blocks))


def _count(name: str, n: int) -> Metric:
    return Metric(f"forge.{name}", Estimate.exact(n, n), "plain")


def _counts(forged: Forged) -> Table:
    rows = [("Texts written", _count("written", forged.written))]
    rows += [
        (f"Dropped: {reason}", _count(f"dropped.{_slug(reason)}", n))
        for reason, n in forged.dropped.items()
    ]
    rows += [(f"Kept, {label}", _count(f"kept.{label}", n)) for label, n in forged.kept.items()]
    least = {label: min(n.values(), default=0) for label, n in forged.by_category.items()}
    rows += [
        (f"Least of any category, {label}", _count(f"least_of_a_category.{label}", n))
        for label, n in least.items()
    ]
    return Table(("Forged", "texts"), tuple(rows), "A text is dropped by the first test it fails.")


def _variety(forged: Forged) -> Table:
    n = forged.kept.get("unsafe", 0)
    rows = tuple(
        (_VARIETY[k], Metric(f"forge.{k}", Estimate.exact(v, n), "plain"))
        for k, v in forged.diversity.items()
    )
    return Table(
        ("Variety of the unsafe texts", "value"), rows, "By the sentence encoder's vectors."
    )


def _slug(reason: str) -> str:
    return reason.replace(" ", "_").replace("-", "_")


def _series(learned: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(row["step"], row[name]) for row in learned if name in row]
    return np.array([step for step, _ in rows]), np.array([value for _, value in rows], float)


def _curves(learned: Sequence[Mapping[str, Any]]) -> Plot:
    figure = plots.loss_curves(
        {r: _series(learned, r) for r in REWARDS}, "Mean reward", "Iteration"
    )
    return Plot.of("forge_rewards", figure, "The three rewards of each batch, by iteration of PPO.")


def _kl(learned: Sequence[Mapping[str, Any]]) -> Plot:
    figure = plots.loss_curves(
        {"KL": _series(learned, "kl")}, "KL to the reference (nats a text)", "Iteration"
    )
    return Plot.of("forge_kl", figure, "How far the rewriter went from where it started.")


@drawing.styled
def grid(shown: Sequence[Rewrite], columns: int = 4) -> Figure:
    """Pictures with the query above and the rewrite below."""
    columns = max(1, min(columns, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure, panels = drawing.panels(rows, columns, (2.1 * columns, 2.9 * rows))
    for axes in panels:
        axes.axis("off")
    for axes, row in zip(panels, shown, strict=False):
        axes.imshow(np.asarray(images.decode(row.picture, "example")), interpolation="nearest")
        axes.set_title(_wrapped(f"“{row.query}”"), fontsize=7, fontweight="normal")
        colour = drawing.VERMILLION if row.label == "unsafe" else drawing.GREEN
        words = f"{_wrapped(f'“{row.text}”')}\n{row.label}"
        axes.text(
            0.5,
            -0.03,
            words,
            ha="center",
            va="top",
            fontsize=7,
            color=colour,
            transform=axes.transAxes,
        )
    return figure


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(drawing.plain(text), 34)[:3])
