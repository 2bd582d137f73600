"""How well the consistency check tells attacked pictures from clean ones, and what ARM costs."""

from collections.abc import Mapping

import numpy as np

from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness import plots
from crossguard_jax.evals.robustness.branches import branch_figures, branch_table, latencies
from crossguard_jax.evals.robustness.figures import level, level_title
from crossguard_jax.evals.robustness.probe import Attacked, Probe
from crossguard_jax.report.blocks import Definitions, Plot, Section, Text
from crossguard_jax.report.tables import Cell, Metric, Table, Unit

PARTS = {"": "all rows attacked", "fooling.": "those that fool the model"}
"""Of an attack's rows, by what their figures' names begin with."""

_MEASURES: Mapping[str, tuple[str, Unit]] = {
    "auroc": ("AUROC", "fraction"),
    "tpr_at_1_fpr": ("TPR at 1% FPR (%)", "percent"),
    "tpr_at_5_fpr": ("TPR at 5% FPR (%)", "percent"),
}
_TERMS = (
    ("S_c", "How well a text fits its picture, by the consistency check. Low is suspicious."),
    (
        "AUROC, TPR",
        "Attacked pictures against all clean ones, by S_c alone. TPR is the share of the attacked "
        "that is told where at most that share of the clean is.",
    ),
    (
        "Fooling, accepted",
        "Of the rows attacked, those with a wrong answer; and those of them that lie above all of "
        "ARM's cuts too.",
    ),
    (
        "Latency",
        "Of a row in a branch, relative to one that is accepted, the check's pass counted in both; "
        "the median of a few rounds of one batch, compilation not counted.",
    ),
)


def figures(probe: Probe) -> Figures:
    """By ``oblivious.auroc`` and so on; ``oblivious.fooling.auroc`` is of the rows that fool the
    model. S_c itself is ``s_c.clean``, ``oblivious.s_c``, ``oblivious.s_c_change`` (less the same
    rows' clean) and ``oblivious.s_c_deviations`` (from the clean mean, in clean deviations).

    Raises:
        UserError: the system has no check.
    """
    if probe.cut is None:
        raise UserError("detection: the model has no consistency check; immunize it with one")
    estimates = {"s_c.clean": metrics.mean(probe.s_c)}
    for name, attacked in probe.attacked.items():
        estimates[f"{name}.s_c"] = metrics.mean(attacked.s_c)
        estimates[f"{name}.s_c_change"] = metrics.mean(attacked.s_c - probe.s_c[attacked.rows])
        estimates[f"{name}.s_c_deviations"] = metrics.mean(deviations(probe, attacked))
        accepted = attacked.fooled & (attacked.s_c >= probe.cut)
        estimates[f"{name}.fooled"] = metrics.proportion(attacked.fooled)
        estimates[f"{name}.accepted"] = metrics.proportion(accepted)
        for part in PARTS:
            scores = attacked.s_c[attacked.fooled] if part else attacked.s_c
            # The lower S_c, the more suspicious.
            both = -np.concatenate([probe.s_c, scores])
            labels = np.arange(both.size) >= probe.s_c.size
            estimates[f"{name}.{part}auroc"] = metrics.auroc(both, labels)
            for percent in (1, 5):
                rate = metrics.recall_at_fpr(both, labels, percent / 100)
                estimates[f"{name}.{part}tpr_at_{percent}_fpr"] = rate
    return estimates


def deviations(probe: Probe, attacked: Attacked) -> Float[np.ndarray, " R"]:
    """S_c of attacked rows in standard deviations of the clean ones, from their mean."""
    return (attacked.s_c - probe.s_c.mean()) / max(float(probe.s_c.std()), 1e-9)


def detection_section(name: str, system: Immunized, probe: Probe, batch_size: int) -> Section:
    """Figures, histograms of S_c, and what ARM costs, which is timed here.

    Args:
        name: dotted; its figures are ``NAME.detection.linf.8...``.
        system: what was probed.
        probe: what came of it.
        batch_size: rows to a timed batch.

    Raises:
        UserError: the system has no check.
    """
    estimates, scores = figures(probe), {"clean": probe.s_c}
    scores |= {attack: attacked.s_c for attack, attacked in probe.attacked.items()}
    estimates |= branch_figures(system.policy, scores) | latencies(system, probe, batch_size)
    where = f"{name}.detection.{probe.norm}.{level(probe.norm, probe.epsilon)}"
    return Section(
        "How well the check tells attacks",
        (
            Text(
                f"{len(probe.x):,} clean rows. APGD of {probe.steps} steps at "
                f"{level_title(probe.norm, probe.epsilon)} in {probe.norm}, on each row that the "
                "model itself answers rightly, whatever its S_c: **oblivious**, which only "
                "fools the model, and **adaptive**, which also raises S_c above "
                f"{probe.cut:.4g}, where plain answers begin, and further."
            ),
            Definitions(_TERMS),
            _table(where, probe, estimates),
            _histograms(where, system, probe),
            branch_table(where, system.policy, estimates, scores),
            Text(
                f"The check makes an accepted row {{{where}.arm.check.latency}} times as long as "
                "the answer alone. Without an answer: "
                + ", ".join(f"{what} {{{where}.arm.all.abstention.{what}:%}}" for what in scores)
                + "."
            ),
        ),
        {f"{where}.{figure}": estimate for figure, estimate in estimates.items()},
    )


def _table(where: str, probe: Probe, estimates: Figures) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for attack in probe.attacked:
        for part, title in PARTS.items():
            shares: list[Cell] = ["", ""]
            if not part:
                shares = [
                    Metric(f"{where}.{attack}.{share}", estimates[f"{attack}.{share}"], show_n=True)
                    for share in ("fooled", "accepted")
                ]
            cells = []
            for measure, (_, unit) in _MEASURES.items():
                figure = f"{attack}.{part}{measure}"
                cells.append(
                    Metric(f"{where}.{figure}", estimates[figure], unit, unit == "percent")
                )
            rows.append((f"{attack}: {title}", *shares, *cells))
    heads = (title for title, _ in _MEASURES.values())
    return Table(
        ("Attack", "fooling (%)", "fooling and accepted (%)", *heads),
        tuple(rows),
        "Attacked rows against clean ones, with 95% intervals.",
    )


def _histograms(where: str, system: Immunized, probe: Probe) -> Plot:
    panels = {
        title: {
            attack: attacked.s_c[attacked.fooled] if part else attacked.s_c
            for attack, attacked in probe.attacked.items()
        }
        for part, title in PARTS.items()
    }
    cuts = [(branch.below, branch.do) for branch in system.policy.branches[:-1]]
    drawn = plots.consistency_histograms(probe.s_c, panels, cuts)
    caption = (
        f"S_c of clean rows and of attacked ones at {level_title(probe.norm, probe.epsilon)}. "
        "Below a dashed line, ARM does what it says."
    )
    return Plot.of("_".join(where.split(".")), drawn, caption)
