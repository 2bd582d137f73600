"""``crossguard toy validity``: what gets through before and after rewriting, seed by seed.

A seed's queries are matched, rewritten and gated as ``toy gate`` does, in the same folder, so that
a run of either is there for the other. Targets saw none of it in training: one refuses by what the
words say, as aligned models do; one is a guard of explicit data.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import LeftOut
from crossguard_jax.evals.validity import GUARD, Compared, outcomes, read_attempts
from crossguard_jax.guard.guard import Guard
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.report.tables import Table
from crossguard_jax.toy.forging import forge_world
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.tables import cells

ROWS: Mapping[str, str] = {
    "refuses_explicit": "Refuses by the words",
    "explicit_only": "Guard of explicit data",
}
"""Variants of ``configs/guard.py``, with the names to show."""

COLUMNS: Mapping[str, str] = {
    "rewritten": "before",
    "after": "after",
    "difference": "after less before, paired",
}

Outcomes = Sequence[Mapping[str, Any]]


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the table, and leaves ``validity.json`` and ``validity.md``."""
    folder, names = Path(args.out), args.only or list(ROWS)
    by_row: dict[str, list[Outcomes]] = {name: [] for name in names}
    for seed in args.seeds:
        config = load_config(
            "configs/impforge.py:tiny",
            [f"--config.ppo.seed={seed}", f"--config.forge.seed={seed}"],
        )
        own = folder / str(seed)
        matched, _ = forge_world(config, own, args.rows, seed)
        for name in names:
            place = own / "targets" / name
            target = target_of(name, seed, args.steps, place)
            with LeftOut(place / "rejected.jsonl") as left_out:
                reading = read_attempts(matched.triplets, own / "forged" / "train.jsonl")
                attempts = left_out.accepted(reading, lambda attempt: attempt.when)
                by_row[name].append(list(outcomes(target, attempts, place / "outcomes.jsonl")))
    figures = {
        name: (figures_of(pooled(of_seeds)), [figures_of(each) for each in of_seeds])
        for name, of_seeds in by_row.items()
    }
    command = (
        f"crossguard toy validity --seeds {' '.join(map(str, args.seeds))} --rows {args.rows} "
        f"--steps {args.steps:g}"
    )
    document = {
        f"{name}.{column}": whole[column].as_dict() | {"seeds": [one[column].value for one in each]}
        for name, (whole, each) in figures.items()
        for column in COLUMNS
    }
    caption = (
        f"Percent let pass, of the queries among {args.rows:,} a seed that something was forged "
        "of, and of what was forged of them; all seeds' rows pooled, 95% intervals (Wilson's; of "
        "the difference Newcombe's for pairs); in parentheses the seeds "
        f"{', '.join(map(str, args.seeds))} apart"
    )
    cells.leave(folder, "validity", command, args.seeds, document, table(figures, caption))


def target_of(variant: str, seed: int, steps: float, folder: Path) -> Guard:
    """A target of `ROWS`, trained for ``steps`` of its configuration's length."""
    config = load_config(f"configs/guard.py:{variant}", [f"--config.train.seed={seed}"])
    config.train.steps = max(int(steps * config.train.steps), config.optim.warmup_steps + 1)
    return train_guard(config, folder, {SOURCE: read}).guard


def pooled(of_seeds: Iterable[Outcomes]) -> Outcomes:
    """All seeds' outcomes; a triplet is one seed's."""
    return [
        dict(row) | {"triplet": f"{n}/{row['triplet']}"}
        for n, rows in enumerate(of_seeds)
        for row in rows
    ]


def figures_of(rows: Outcomes) -> dict[str, Estimate]:
    """``COLUMNS``, as ``crossguard validity`` has them."""
    return Compared.of(rows).figures()[GUARD]


def table(
    figures: Mapping[str, tuple[Mapping[str, Estimate], Sequence[Mapping[str, Estimate]]]],
    caption: str,
) -> Table:
    """A row a target: all seeds', and each one's."""

    def text(whole: Estimate, each: Sequence[Estimate]) -> str:
        value, low, high = (100 * x for x in (whole.value, whole.low, whole.high))
        apart = ", ".join(f"{100 * one.value:.1f}" for one in each)
        return f"{value:.1f} [{low:.1f}, {high:.1f}] ({apart})"

    rows = tuple(
        (ROWS[name], *(text(whole[c], [one[c] for one in each]) for c in COLUMNS))
        for name, (whole, each) in figures.items()
    )
    return Table(("Target", *COLUMNS.values()), rows, caption)
