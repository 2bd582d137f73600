"""``crossguard toy cmai``: what each part of CMAI buys, under one suite of attacks.

Rows are variants of ``configs/cmai.py`` (`tables.defences`). What is left is a report with curves
and paired differences, resumable to the cell.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.robustness.detection import detection_section
from crossguard_jax.evals.robustness.figures import Robustness, compare, figures
from crossguard_jax.evals.robustness.fixed import Operating
from crossguard_jax.evals.robustness.fixed_report import fixed_section
from crossguard_jax.evals.robustness.report import robustness_section
from crossguard_jax.report.blocks import Plot, Section
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import ABSENT, Cell, Metric, Table
from crossguard_jax.toy.tables.defences import (
    COMPARED,
    ROWS,
    TASKS,
    TESTED,
    SeedResult,
    base_guard,
    cut_rows,
    held_out,
    model_of,
    probe_model,
    train_and_attack,
    write_sources,
)
from crossguard_jax.toy.tables.workers import spread

TITLES = {"guard": "Guard", "vqa": "VQA"}
"""What to call a task."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints where the report is."""
    folder, first = Path(args.out), args.seeds[0]
    tasks = args.tasks or list(TASKS)
    runs = _runs(tasks, args.only or list(ROWS), args.seeds)
    for task in tasks:
        write_sources(folder, task)
    if "guard" in tasks:
        spread(base_guard, [(folder, seed) for seed in args.seeds], args.jobs)
    units = [(folder, *which, which[-1] == first, args.rows) for which in runs]
    outputs = spread(train_and_attack, units, args.jobs)
    results: dict[str, dict[str, list[SeedResult]]] = {task: {} for task in tasks}
    for (task, name, _), one in zip(runs, outputs, strict=True):
        results[task].setdefault(name, []).append(one)
    sections: list[Section] = []
    for task in tasks:
        probed = [name for name in results[task] if ROWS[name].probed]
        sections += _sections(task, results[task], args.rows)
        sections += [_detection(folder, task, name, first, args.rows) for name in probed]
    command = f"crossguard toy cmai --seeds {' '.join(map(str, args.seeds))} --rows {args.rows}"
    command += f" --tasks {' '.join(args.tasks)}" if args.tasks else ""
    command += "".join(f" --only {name}" for name in args.only or ())
    meta = {"command": command, "seeds": list(args.seeds)}
    print(f"report: {Report('CMAI in the small world', sections, meta).write(folder)}")


def _runs(
    tasks: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, str, int]]:
    """Task, row and seed of each model. First seeds come first: what they compile, later ones find.

    Raises:
        UserError: a row that there is not, or a task that has none of them.
    """
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        raise UserError(f"--only {', '.join(unknown)}: rows are {', '.join(ROWS)}")
    for task in tasks:
        if not any(task in ROWS[name].tasks for name in names):
            raise UserError(f"--only {', '.join(names)}: not a row of the task {task}")
    return [
        (task, name, seed)
        for task in tasks
        for seed in seeds
        for name in names
        if task in ROWS[name].tasks and (seed == seeds[0] or task in ROWS[name].every_seed)
    ]


def _sections(task: str, results: Mapping[str, Sequence[SeedResult]], rows: int) -> list[Section]:
    """What a task's models came to: compared, some of them closely, and what they cost."""
    compared = {name: _merged([one.linf for one in seeds]) for name, seeds in results.items()}
    clean = {name: _merged([one.clean for one in seeds]) for name, seeds in results.items()}
    closely = {name: seeds[0] for name, seeds in results.items() if seeds[0].l2}
    balls = (
        {name: one.linf for name, one in closely.items()},
        {name: one.l2 for name, one in closely.items() if one.l2},
    )
    return [
        _section(task, TITLES[task], compared),
        *[_fixed_section(task, compared, rows)] * any(each.scores for each in compared.values()),
        *(_section(f"{task}.closely", f"{TITLES[task]}, closely", ball) for ball in balls if ball),
        _clean_section(task, clean),
    ]


def _detection(folder: Path, task: str, name: str, seed: int, rows: int) -> Section:
    """What the check of one model tells; not while others run, since branches are timed."""
    model, tests = model_of(folder, task, name, seed), held_out(task, rows, TESTED)
    system, probed = model.system, probe_model(model, tests)
    section = detection_section(f"{task}.{name}", system, probed, model.config.attack.batch_size)
    return replace(section, title=f"{TITLES[task]}, {ROWS[name].title}: {section.title}")


def _merged(cells: Sequence[Robustness]) -> Robustness:
    """One system of several seeds, up to the radius where all are compared."""
    return Robustness(
        {
            seed: curve.within(min(COMPARED, curve.plan.epsilons[-1]))
            for cell in cells
            for seed, curve in cell.curves.items()
        },
        scores={seed: s.within(COMPARED) for cell in cells for seed, s in cell.scores.items()},
    )


def _fixed_section(task: str, results: Mapping[str, Robustness], rows: int) -> Section:
    """Guards at cuts of their own."""
    systems = {f"{task}.{name}": system for name, system in results.items()}
    titles = {f"{task}.{name}": ROWS[name].title for name in results}
    operating: dict[str, Operating] = {}
    for name, system in systems.items():
        for seed, scores in system.scores.items():
            operating[f"{name}.seed_{seed}"] = scores.operating
            titles[f"{name}.seed_{seed}"] = f"{titles[name]}, seed {seed}"
    how = f"of {len(cut_rows()):,} rows of validation"
    tests = held_out(task, rows, TESTED)
    section = fixed_section(operating, "linf", systems, {}, tests, how, titles)
    return replace(section, title=f"{TITLES[task]}: {section.title[0].lower()}{section.title[1:]}")


def _section(prefix: str, title: str, results: Mapping[str, Robustness]) -> Section:
    """Systems in one ball; figures and plots are named after the prefix."""
    systems = {f"{prefix}.{name}": system for name, system in results.items()}
    titles = {f"{prefix}.{name}": ROWS[name].title for name in results}
    section = robustness_section(systems, titles)
    place = prefix.replace(".", "_")
    blocks = tuple(
        replace(block, name=f"{place}_{block.name}") if isinstance(block, Plot) else block
        for block in section.blocks
    )
    return replace(section, title=f"{title}: {section.title}", blocks=blocks)


def _clean_section(task: str, results: Mapping[str, Robustness]) -> Section:
    """What each defence costs where nobody attacks."""
    figures_of = {name: figures(system) for name, system in results.items()}
    rows: list[tuple[Cell, ...]] = []
    for name, system in results.items():
        cells = [
            Metric(f"{task}.{name}.unattacked.{what}", figures_of[name][f"linf.clean.{what}"])
            for what in ("accuracy", "rejected")
        ]
        cost: Cell = ABSENT
        if name != "none" and "none" in results:
            paired = compare(system, results["none"])["linf.clean.accuracy_difference"]
            cost = Metric(f"{task}.{name}.unattacked.minus.none", paired, "points")
        rows.append((ROWS[name].title, *cells, cost))
    n = next(iter(results.values())).any.plan.rows
    table = Table(
        ("System", "accuracy", "rejected", "accuracy less no defence's, points"),
        tuple(rows),
        f"{n:,} held-out rows, the same for all, in percent of all rows; a row that is rejected is "
        "not right. Seeds are averaged and count as no more rows; differences are paired.",
    )
    title = f"{TITLES[task]}: what a defence costs where nobody attacks"
    return Section(title, (table,))
