"""What a run of attacks will cost, by arithmetic, before it starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from crossguard_jax.attacks.registry import PROMPTS, ROWS, WHOLE, Cost, Registered
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness.runs import PLAN

DOUBLED = 1 + 2 + 2
"""Suites that convergence runs: as it is, with steps twice and with restarts twice as many."""


def passes(
    config: Any, attacks: Sequence[Registered], rows: int, cuts: int = 1, clean: int = 0
) -> Cost:
    """Of all rows at most: every attack at every radius and cut, the judge, and convergence; the
    answer's alone, without what a policy's branches run beside it, the probe and certificates.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        attacks: those that run.
        rows: that are attacked.
        cuts: at which all are attacked.
        clean: rows by which these are chosen.
    """
    radii = sum(epsilon > 0 for epsilon in config.epsilons)
    judged, total = Cost(config.draws), Cost((2 * rows * cuts + clean) * config.draws)
    for attack in attacks:
        each = attack.cost.plus(judged)
        if attack.route in (ROWS, WHOLE):
            total = total.plus(each.times(rows * radii * cuts))
            total = total.plus(each.times(DOUBLED * min(config.convergence.rows, rows)))
        elif attack.route == PROMPTS:
            total = total.plus(each.times(min(rows, int(attack.options["prompts"])) * cuts))
        else:
            total = total.plus(each.times(rows * cuts))
    return total


def line(
    config: Any,
    attacks: Sequence[Registered],
    system: Immunized,
    records: Sequence[Record],
    systems: int,
    done: int,
    clean: int = 0,
) -> str:
    """The budget for a reader.

    Args:
        config, attacks: as of `passes`.
        system: the main one; its size makes operations of passes.
        records: the rows.
        systems: how many are attacked.
        done: results that an earlier run has left.
        clean: as of `passes`.
    """
    own = system.settings.threshold != 0.5
    cuts = 1 + len(config.fpr) + own if clean else 1
    cost = passes(config, attacks, len(records), cuts, clean).times(systems)
    leaves = jax.tree.leaves(system.params)
    numbers = sum(int(np.size(leaf)) for leaf in leaves)
    longest = max(len(record.text) for record in records)
    encoder = system.task.guard.encoder
    record = next(record for record in records if len(record.text) == longest)
    (row,) = encoder.windows([record.text], [len(record.images)])
    tokens = len(row[0].ids) if isinstance(row, list) else encoder.settings.max_length
    # 2 operations a number and token forward, as much again back to the inputs.
    operations = 2.0 * numbers * tokens * (cost.forward + cost.gradient)
    radii = sum(epsilon > 0 for epsilon in config.epsilons)
    by = f"{cuts} cuts by {clean:,} clean rows, " if clean else ""
    return (
        f"budget: {len(records):,} rows, {len(attacks)} attacks, {radii} radii, {by}{systems} "
        f"systems: at most {cost.forward:,} forward and {cost.gradient:,} gradient passes of a "
        f"row, about {operations:.1e} operations, beside the probe, --certify and what a policy's "
        "branches run" + (f"; {done:,} results of an earlier run are there" if done else "")
    )


def left_there(folder: Path) -> int:
    """Results that an earlier run has left in a folder of cells."""
    made = (path for kind in ("*.npz", "*.json") for path in folder.rglob(kind))
    return sum(path.name != PLAN for path in made)
