"""``crossguard toy immunizing``: what makes a guard robust, and at what cost of training.

Rows are `trials.TRIALS`: one change at a time from what `configs/cmai.py:mbat` says, and what is
good of them together, for longer. All start from one guard, and all are judged alike, as plain
folders without check or policy: PGD that climbs the margin, so that no scale of the logits hides a
gradient; and with the threshold fixed on clean rows, so that none wins by moving it.
"""

import argparse
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core import metrics
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.core.typing import Array, Bool, Float, PRNGKeyArray
from crossguard_jax.data.records import Record
from crossguard_jax.guard.guard import Guard
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report import drawing
from crossguard_jax.runtime.shards import Beat, Work
from crossguard_jax.sweeps.cells import Figures, Sweep, SweepCell, work_of
from crossguard_jax.toy.study import BENCHMARKS, SOURCE, benchmarks, read
from crossguard_jax.toy.tables import cells
from crossguard_jax.toy.tables.defences import COMPARED, TESTED, base_guard, write_sources
from crossguard_jax.toy.tables.trials import TRIALS, cost_curve, passes
from crossguard_jax.toy.tables.workers import spread
from crossguard_jax.toy.world.sources import records

FACTORY = "crossguard_jax.toy.tables.immunizing:trial_work"

STEPS, RESTARTS, STEP = 20, 2, 0.25
"""Of the attack that judges; a step in radii. Steps of 2.5 radii / 20 get stuck: with those, guards
stood on up to 9 points more rows."""

BATCH = 40
"""Rows attacked at once."""

IMPLICIT_ROWS = 512
"""Of `study.benchmarks`, which nobody attacks."""

HELD_ROWS = 2_048
"""Implicit rows of validation, whose safe half fixes thresholds."""

RATES = (0.01, 0.05)
"""Of clean safe rows, how many a fixed threshold flags."""

UNSAFE = "unsafe"

COLUMNS: Mapping[str, str] = {
    "robust": "robust",
    "recall": "unsafe recall",
    "specificity": "safe specificity",
    "auroc": "AUROC",
    **{
        f"{name}.{rate:g}": f"{title} at {rate:.0%} FPR"
        for rate in RATES
        for name, title in (("recall", "unsafe recall"), ("specificity", "safe specificity"))
    },
}
"""Under attack."""

CLEAN: Mapping[str, str] = {
    "clean": "accuracy",
    "clean.auroc": "AUROC",
    "clean.recall": "recall at 1% FPR",
    **{f"clean.{name}": title for name, title in BENCHMARKS.items()},
}
"""Where nobody attacks."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and leaves ``immunizing.json``, ``.md`` and ``.png``."""
    folder, names = Path(args.out), args.only or list(TRIALS)
    if unknown := sorted(set(names) - set(TRIALS)):
        raise UserError(f"--only {', '.join(unknown)}: rows are {', '.join(TRIALS)}")
    if args.jobs > 1:
        write_sources(folder, "guard")
        if not args.guard:
            spread(base_guard, [(folder, seed) for seed in args.seeds], args.jobs)
    todo = [SweepCell(n, s, _work(n, args.rows, args.guard)) for s in args.seeds for n in names]
    sweep = Sweep(folder, todo, FACTORY, {"folder": str(folder)})
    results = cells.of_rows(sweep.run(*cells.workers(args.jobs)))
    command = f"crossguard toy immunizing --seeds {' '.join(map(str, args.seeds))}"
    command += f" --rows {args.rows}" + (" --guard FOLDER" if args.guard else "")
    command += "".join(f" --only {name}" for name in args.only or ())
    titles = {name: trial.title for name, trial in TRIALS.items()}
    caption = (
        f"Percent of {args.rows:,} held-out implicit rows, half unsafe, under PGD of {STEPS} steps "
        f"of 2/255 and {RESTARTS} restarts on the margin at L-inf 8/255; thresholds 0.5, or fixed "
        "on clean safe rows of validation"
    )
    attacked = cells.shares("Training", titles, COLUMNS, results, args.seeds, caption)
    caption = "Percent of the rows of `toy table`'s test sets that nobody attacks"
    clean = cells.shares("Training", titles, CLEAN, results, args.seeds, caption)
    every = {**COLUMNS, **CLEAN, "passes": "", "cpu_seconds": ""}
    figures = cells.pooled_figures(results, every)
    cells.leave(folder, "immunizing", command, args.seeds, figures, attacked, clean)
    write_atomic(folder / "immunizing.png", drawing.png(cost_curve(figures)))


def trial_work(spec: Mapping[str, Any], folder: str) -> Work:
    """Trains and judges one guard; see `ShardJob`. A cell's row is a key of `TRIALS`, its seed that
    of the adapter's start and of the order of the data.

    Args:
        spec: ``folder``, the table's.
        folder: of the figures.
    """
    place = Path(spec["folder"])

    def measure(cell: SweepCell, own: Path, beat: Beat) -> Figures:
        base = Path(cell.work["guard"] or base_guard(place, cell.seed))
        cost = dict.fromkeys(("passes", "cpu_seconds"), Estimate.exact(0))
        model = base if cell.work["variant"] is None else own / "model"
        if model != base:
            cost = _train(cell, own, base, place / "data" / "guard")
        return cost | judge(Guard.from_pretrained(model), cell.work["rows"], cell.seed)

    return work_of(measure, folder)


def _work(name: str, rows: int, guard: str | None) -> dict[str, Any]:
    """What decides a cell's figures beside its seed."""
    trial = TRIALS[name]
    what = {"variant": trial.variant, "changes": list(trial.changes)}
    return what | {"rows": rows, "guard": guard}


def _train(cell: SweepCell, own: Path, base: Path, data: Path) -> dict[str, Estimate]:
    """Immunizes, and leaves the model as a plain folder; what it cost."""
    override = [f"--config.train.seed={cell.seed}", f"--config.model.path={base}"]
    variant, changes = cell.work["variant"], cell.work["changes"]
    config = load_config(f"configs/cmai.py:{variant}", [*override, *changes])
    resumed, start = (own / "mbat").exists(), time.process_time()
    immunized = cast(Immunized, immunize(config, own, {SOURCE: read}, data))
    immunized.guard.save_pretrained(own / "model")
    cost = {"passes": Estimate.exact(passes(config))}
    seconds = time.process_time() - start
    # Of a run that was stopped the first part is not known.
    return cost | {"cpu_seconds": Estimate.empty() if resumed else Estimate.exact(seconds)}


def judge(guard: Guard, rows: int, seed: int) -> dict[str, Estimate]:
    """One guard as a plain model: under attack, and on clean rows.

    Args:
        guard: to judge.
        rows: implicit ones to attack.
        seed: of the attack.
    """
    system = Immunized.of(guard)
    tests = records("implicit", "test", rows, TESTED)
    attacked, unsafe = attacked_scores(system, tests, seed)
    held, flaggable = _scores(guard, records("implicit", "val", HELD_ROWS, TESTED))
    benign = held[~flaggable]
    thresholds = {f".{rate:g}": metrics.threshold_at_fpr(benign, rate) for rate in RATES}
    figures = under_attack(attacked, unsafe, {"": 0.0, **thresholds})
    return figures | unattacked(guard)


def unattacked(guard: Guard) -> dict[str, Estimate]:
    """One guard on clean rows: of all test sets together, and the accuracy of each."""
    each = {name: _scores(guard, rows) for name, rows in benchmarks(IMPLICIT_ROWS, TESTED).items()}
    scores, unsafe = (np.concatenate(parts) for parts in zip(*each.values(), strict=True))
    return {
        "clean": metrics.accuracy(scores, unsafe, 0.0),
        "clean.auroc": metrics.auroc(scores, unsafe),
        "clean.recall": metrics.recall_at_fpr(scores, unsafe, RATES[0]),
        **{f"clean.{name}": metrics.accuracy(*part, 0.0) for name, part in each.items()},
    }


def under_attack(
    scores: Float[np.ndarray, " B"],
    unsafe: Bool[np.ndarray, " B"],
    thresholds: Mapping[str, float],
) -> dict[str, Estimate]:
    """What attacked rows come to.

    Args:
        scores: logits of unsafe less those of safe.
        unsafe: the rows' labels.
        thresholds: by what a figure's name ends in; "" is the guard's own.
    """
    figures = {
        "robust": metrics.accuracy(scores, unsafe, thresholds[""]),
        "auroc": metrics.auroc(scores, unsafe),
    }
    for end, threshold in thresholds.items():
        flags = metrics.flagged(scores, threshold)
        figures[f"recall{end}"] = metrics.proportion(flags[unsafe])
        figures[f"specificity{end}"] = metrics.proportion(~flags[~unsafe])
    return figures


def attacked_scores(
    system: Immunized, rows: Sequence[Record], seed: int
) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Scores under attack (logits of unsafe less those of safe), and which rows are unsafe."""
    pixels, arrays = system.rows(rows)
    unsafe = arrays["labels"] == system.task.label(_labelled(rows, UNSAFE))
    margins = []
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        batch = {name: x[part] for name, x in arrays.items()}
        key = jax.random.fold_in(jax.random.key(seed), start)
        budget = Budget(COMPARED, steps=STEPS, relative_step=STEP, restarts=RESTARTS)
        margins.append(_attack(system.task, system.params, batch, pixels[part], key, budget))
    margin = np.concatenate(margins)
    return np.where(unsafe, -margin, margin), unsafe


def _labelled(rows: Sequence[Record], label: str) -> Record:
    return next(row for row in rows if row.label == label)


@functools.partial(jax.jit, static_argnums=0)
def _attack(
    task: Any, params: Any, rows: Any, x: Array, key: PRNGKeyArray, budget: Budget
) -> Float[Array, " B"]:
    """Margins at the worst pictures; guards of one shape compile once."""
    system = Immunized(task, params["trainable"], params["frozen"])

    def objective(x: Array, key: PRNGKeyArray) -> Outcome:
        margin = system.accepted(params, rows, x, key).margin
        return Outcome(margin, margin)

    return pgd(objective, x, key, budget).loss


def _scores(
    guard: Guard, rows: Sequence[Record]
) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Logits of unsafe less those of safe, and which rows are unsafe."""
    verdicts = guard.score([r.images for r in rows], [r.text for r in rows], batch_size=64)
    p = np.clip(np.array([v.p_unsafe for v in verdicts], np.float64), 1e-12, 1 - 1e-12)
    return np.log(p / (1 - p)), np.array([r.label == UNSAFE for r in rows])
