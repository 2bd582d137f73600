"""S_c of attacked rows under several checks, such as one before and one after immunizing.

Scores of two checks are no one's scale, so they are also counted in standard deviations of each
check's own clean rows: 0 is as consistent as clean rows are.
"""

from collections.abc import Mapping

import numpy as np

from crossguard_jax.core import metrics
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.detection import deviations, figures
from crossguard_jax.evals.robustness.figures import level, level_title
from crossguard_jax.evals.robustness.probe import Attacked, Probe
from crossguard_jax.report.blocks import Section, Text
from crossguard_jax.report.tables import Cell, Metric, Table, Unit

_COLUMNS: Mapping[str, tuple[str, Unit]] = {
    "s_c": ("S_c, attacked", "fraction"),
    "s_c_change": ("less the same rows' clean", "fraction"),
    "s_c_deviations": ("clean deviations from the clean mean", "fraction"),
    "auroc": ("AUROC", "fraction"),
}


def consistency_changes(after: Probe, before: Probe) -> Figures:
    """By ``oblivious.s_c_difference`` and so on: how much higher S_c of a row is that both models
    were attacked on, raw and (``s_c_deviations_difference``) in each check's clean deviations.

    Args:
        after, before: of the same rows; each attack is on its own model.

    Raises:
        UserError: they are of different rows, radii or norms.
    """
    same = [(p.norm, p.epsilon, [record.id for record in p.records]) for p in (after, before)]
    if same[0] != same[1]:
        raise UserError("detection: checks that were probed on different rows or in other balls")
    estimates = {}
    for name in after.attacked.keys() & before.attacked.keys():
        both = after.attacked[name], before.attacked[name]
        rows = np.intersect1d(both[0].rows, both[1].rows)
        for figure, of in (("s_c", _raw), ("s_c_deviations", deviations)):
            scores = [
                of(p, a)[np.isin(a.rows, rows)] for p, a in zip((after, before), both, strict=True)
            ]
            estimates[f"{name}.{figure}_difference"] = metrics.mean(scores[0] - scores[1])
    return estimates


def _raw(probe: Probe, attacked: Attacked) -> Float[np.ndarray, " R"]:
    return attacked.s_c


def consistency_section(probes: Mapping[str, Probe]) -> Section:
    """A row a model and attack; then what the first model's are above each other one's.

    Args:
        probes: of models with a check, by dotted name, the main one first.
    """
    (main, first), *others = probes.items()
    where = f"detection.{first.norm}.{level(first.norm, first.epsilon)}"
    everything: Figures = {}
    rows: list[tuple[Cell, ...]] = []
    for name, probe in probes.items():
        measured = figures(probe)
        for attack in probe.attacked:
            cells = [
                Metric(f"{name}.{where}.{attack}.{part}", measured[f"{attack}.{part}"], unit)
                for part, (_, unit) in _COLUMNS.items()
            ]
            rows.append((f"{name}: {attack} (n = {len(probe.attacked[attack].rows):,})", *cells))
            everything |= {cell.name: cell.estimate for cell in cells}
    heads = ("Model: attack", *(title for title, _ in _COLUMNS.values()))
    blocks = [Table(heads, tuple(rows), "Means over the rows attacked, with 95% intervals.")]
    changes: list[tuple[Cell, ...]] = []
    for name, probe in others:
        measured = consistency_changes(first, probe)
        for attack in first.attacked.keys() & probe.attacked.keys():
            parts = (f"{attack}.{part}_difference" for part in ("s_c", "s_c_deviations"))
            cells = [
                Metric(f"{main}.minus.{name}.{where}.{part}", measured[part], "fraction", True)
                for part in parts
            ]
            changes.append((f"{main} minus {name}: {attack}", *cells))
            everything |= {cell.name: cell.estimate for cell in cells}
    text = Text(
        f"Attacks at {level_title(first.norm, first.epsilon)} in {first.norm}, each on its own "
        "model, on the rows that it answers rightly. Immunizing is proposed to raise S_c of "
        "attacked rows: above 0 it did."
    )
    if changes:
        caption = "Paired, on the rows that both were attacked on."
        heads = ("First minus second", "S_c", "clean deviations")
        blocks.append(Table(heads, tuple(changes), caption))
    return Section("S_c of attacked rows, by model", (text, *blocks), everything)
