"""``crossguard toy weights``: which of the rewriter's reward weights matter, and how much.

What the paper calls sensitive: each weight and tau by itself, all else as ``configs/impforge.py``'s
``tiny`` has it, over seeds; judged as `tables.rewriters` does.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from crossguard_jax.report.tables import Unit
from crossguard_jax.sweeps.cells import Sweep, SweepCell
from crossguard_jax.sweeps.grid import BASE, rows_of
from crossguard_jax.sweeps.report import SweepPage, leave_report
from crossguard_jax.toy.tables import rewriters
from crossguard_jax.toy.tables.cells import workers

GRID = (
    *(f"rewards.weights.{name}=0.5,1,2" for name in ("safety", "semantic", "overlap")),
    "rewards.overlap.tau=0.1,0.3",
)
SHORTER = ("--config.ppo.iterations=10",)
"""As quickstart's forge: the rewriter has learned what it will."""
TARGET = "toy://guard_explicit_only"
"""Refuses by what the words or the picture show alone."""
SHOWN: Mapping[str, tuple[str, Unit]] = {
    **{
        name: (rewriters.COLUMNS[name], "percent")
        for name in ("implicit", "unsafe_alone", "same_intent", "gibberish", "asr")
    },
    "kl": ("KL, nats", "fraction"),
}


def main(args: argparse.Namespace) -> int:
    """The verb's work: leaves a report in the folder; returns 1 if a run failed."""
    folder = Path(args.out)
    rows = rows_of(f"{rewriters.CONFIG}:tiny", SHORTER, grid=GRID, one_at_a_time=True)
    cells = [
        SweepCell(
            row.name,
            seed,
            {
                "spec": row.spec,
                "overrides": [*SHORTER, *row.overrides()],
                "trained": True,
                "rows": args.rows,
            },
        )
        for seed in args.seeds
        for row in rows
        if not args.only or row.name in (BASE, *args.only)
    ]
    spec = {"folder": str(folder), "rows": args.rows, "target": TARGET}
    outcomes = Sweep(folder, cells, rewriters.FACTORY, spec).run(*workers(args.jobs))
    titles = {BASE: "equal weights of 1, tau 0.18"} | {
        row.name: ", ".join(f"{f.rpartition('.')[2]} {v}" for f, v in row.settings.items())
        for row in rows[1:]
    }
    command = f"crossguard toy weights --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    page = SweepPage("Weights of the rewriter's rewards", command, BASE, titles, figures=SHOWN)
    leave_report(outcomes, page, folder)
    return int(any(each.reason for each in outcomes))
