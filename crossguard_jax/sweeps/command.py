"""``crossguard sweep``: a verb over variants, values and seeds, and one report of all of them."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.executors.run import check_where
from crossguard_jax.sweeps.arguments import SEEDS
from crossguard_jax.sweeps.cells import CellOutcome, Sweep, SweepCell
from crossguard_jax.sweeps.grid import BASE, GridRow, rows_of, shown
from crossguard_jax.sweeps.report import SweepPage, figures_shown, leave_report
from crossguard_jax.sweeps.steps import FACTORY, step_folder

FIELDS_SHOWN = 4
"""In which a row differs from the base; more are counted."""


def main(
    args: argparse.Namespace,
    check: Callable[[Sequence[str]], None],
    program: str = "crossguard_jax",
) -> int:
    """The verb's work.

    Args:
        args: its arguments; ``rest`` are those of the verb that is repeated.
        check: raises, or ends the process, for a command line that its verb would not take.
        program: the module whose command line has the verbs.

    Returns:
        1 if a run failed; otherwise 0.
    """
    check_where(args.on)
    if len(set(args.seeds)) < len(args.seeds):
        args.usage_error("--seeds: one of them twice")
    overrides = [word for word in args.rest if word.startswith(("--config.", "--noconfig."))]
    own = [word for word in args.rest if word not in overrides]
    seeds = SEEDS[args.what]
    rows = rows_of(args.base, overrides, args.variants, args.set, args.one_at_a_time, seeds)
    then = [_words(line) for line in args.then]
    folder = Path(args.out)
    # A first seed of every row comes before any second one.
    cells = [_cell(folder, args.what, r, s, overrides, own, then) for s in args.seeds for r in rows]
    for step in cells[0].work["steps"]:
        check(step)
    sweep = Sweep(folder, cells, FACTORY, {"program": program}, args.threads)
    if args.dry_run:
        _print(rows, sweep.outcomes())
        return 0
    # Told to stop, the run that is under way saves first.
    preemption.listen()
    outcomes = sweep.run(args.on, args.workers)
    if args.on != "array" or all(each.settled for each in outcomes):
        page = SweepPage(
            f"{args.what.capitalize()}: {args.base} and what differs from it",
            command_of(args),
            BASE,
            {row.name: row.name.replace(",", ", ") for row in rows},
            {row.name: _differences(row, rows[0]) for row in rows},
            figures_shown(outcomes, args.show),
        )
        leave_report(outcomes, page, folder)
    return _ended(outcomes)


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"--then {line}: {error}; close it") from error
    if not words:
        raise UserError("--then: names no verb; write --then 'VERB ...', or leave it out")
    return words


def command_of(args: argparse.Namespace) -> str:
    """The command line, without where and by whom it is done."""
    words = ["crossguard", "sweep", args.what, "--config", args.base]
    words += ["--variants", ",".join(args.variants)] if args.variants else []
    for flag, values in (("--set", args.set), ("--then", args.then), ("--show", args.show)):
        words += [word for value in values for word in (flag, value)]
    words += ["--one-at-a-time"] if args.one_at_a_time else []
    words += ["--seeds", *map(str, args.seeds), *args.rest]
    return shlex.join(words)


def _cell(
    folder: Path,
    verb: str,
    row: GridRow,
    seed: int,
    overrides: Sequence[str],
    own: Sequence[str],
    then: Sequence[Sequence[str]],
) -> SweepCell:
    """A run and what follows it; with all of its configuration: an edited file is noticed."""
    seeded = [f"--config.{field}={seed}" for field in SEEDS[verb]]
    steps = [[verb, "--config", row.spec, *overrides, *row.overrides(), *seeded, *own], *then]
    run = str(step_folder(folder / "runs" / SweepCell(row.name, seed).name, steps, 0))
    steps = [steps[0], *([word.replace("{run}", run) for word in step] for step in steps[1:])]
    return SweepCell(row.name, seed, {"steps": steps, "config": dict(row.fields)})


def _differences(row: GridRow, base: GridRow) -> str:
    pairs = row.differences(base)
    if not pairs:
        return row.spec
    words = [f"{name} {shown(was)} → {shown(now)}" for name, (was, now) in pairs.items()]
    more = len(words) - FIELDS_SHOWN
    return "; ".join(words[:FIELDS_SHOWN]) + (f"; {more:,} more fields" if more > 0 else "")


def _print(rows: Sequence[GridRow], outcomes: Sequence[CellOutcome]) -> None:
    states: dict[str, list[str]] = {}
    for each in outcomes:
        done = each.figures is not None
        state = "done" if done else "failed before" if each.reason else "to do"
        states.setdefault(each.cell.row, []).append(f"seed {each.cell.seed}: {state}")
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:{width}}  {', '.join(states[row.name])}")
        for name, (was, now) in row.differences(rows[0]).items():
            print(f"{'':{width}}    {name}: {shown(was)} → {shown(now)}")
    print(f"{len(outcomes):,} runs")


def _ended(outcomes: Sequence[CellOutcome]) -> int:
    failed = [each for each in outcomes if each.reason]
    for each in failed:
        print(f"{each.cell.name} failed: {each.reason}")
    if failed:
        print(f"exit code 1, because {len(failed):,} of {len(outcomes):,} runs failed")
    return int(bool(failed))
