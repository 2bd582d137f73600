"""``crossguard toy tasks``: captions and retrieval, of models as they are and immunized.

A LLaVA that describes pictures and a CLIP that finds their captions, undefended, with FARE's tower
and with all of CMAI (`configs/cmai.py`), by the same rows and attacks. CMAI's rows with its check
are attacked by who knows of it; without it, its model alone is measured.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from crossguard_jax.cmai.folders import CHECK, FILE, is_immunized
from crossguard_jax.cmai.recipe import immunize
from crossguard_jax.core.config import load_config
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.benchmarks import Figures
from crossguard_jax.evals.robustness.figures import level_title
from crossguard_jax.evals.tasks.attack import Attack, Measured, where
from crossguard_jax.evals.tasks.counts import Counts, figures_of, together
from crossguard_jax.evals.tasks.evaluate import Asking, measure_tasks
from crossguard_jax.evals.tasks.report import compare, tasks_section
from crossguard_jax.evals.tasks.rows import Benchmark
from crossguard_jax.io.jsonl import write_atomic
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import ABSENT, Table
from crossguard_jax.toy.study import SOURCE, read
from crossguard_jax.toy.tables import cells
from crossguard_jax.toy.world.examples import to_record
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.toy.world.vqa import caption

TASKS: Mapping[str, str] = {"captions": "toy://llava", "retrieval": "toy://clip"}
"""What is asked, and of which model."""

SYSTEMS: Mapping[str, str] = {"fare": "fare", "cmai": "tiny"}
"""What is trained, and by which variant of the task's configuration."""

CAPTIONS = 5
RADII = (4 / 255, 8 / 255)
ATTACK = Attack(RADII, name="selective", steps=10, restarts=1)


OfSystems = dict[str, dict[str, Counts]]
"""Counts by system and place."""


def main(args: argparse.Namespace) -> None:
    """The verb's work: prints the tables, and leaves ``tasks.json``, ``tasks.md`` and a report a
    seed and task. What an earlier run trained and measured is taken as it is."""
    folder, tables = Path(args.out), []
    figures: dict[str, Any] = {}
    for task in args.only or TASKS:
        of_seeds = [_counted(folder, task, seed, args.steps, args.rows) for seed in args.seeds]
        measured = {"": figures_by_name(of_seeds, own_figures)}
        measured[" less"] = figures_by_name(of_seeds, paired_figures)
        for what, some in measured.items():
            tables.append(table(task + what, some, args.seeds))
            figures |= {
                f"{task}.{name}": whole.as_dict() | {"seeds": [e.value for e in each]}
                for name, (whole, each) in some.items()
            }
    command = (
        f"crossguard toy tasks --seeds {' '.join(map(str, args.seeds))} --rows {args.rows} "
        f"--steps {args.steps:g}"
    )
    cells.leave(folder, "tasks", command, args.seeds, figures, *tables)


def own_figures(counts: OfSystems) -> Figures:
    """``SYSTEM.PLACE.FIGURE`` of every system."""
    return {
        f"{system}.{place}.{name}": estimate
        for system, places in counts.items()
        for place, own in places.items()
        for name, estimate in figures_of(own).items()
    }


def paired_figures(counts: OfSystems) -> Figures:
    """As `evals.tasks.report.compare`: the first system less each other one."""
    return compare({system: {"rows": places} for system, places in counts.items()})


def figures_by_name(
    of_seeds: Sequence[OfSystems], figures: Callable[[OfSystems], Figures]
) -> dict[str, tuple[Estimate, list[Estimate]]]:
    """Of all seeds' rows put together, and of each seed's."""
    first = of_seeds[0]
    pooled = {
        system: {place: together([one[system][place] for one in of_seeds]) for place in places}
        for system, places in first.items()
    }
    each = [figures(one) for one in of_seeds]
    return {name: (whole, [one[name] for one in each]) for name, whole in figures(pooled).items()}


def table(
    head: str, measured: Mapping[str, tuple[Estimate, Sequence[Estimate]]], seeds: Sequence[int]
) -> Table:
    """A row a system, or a pair of them, and figure; a column a place.

    Args:
        head: of the first column.
        measured: by name, of all seeds and of each.
        seeds: theirs.
    """
    radii = {where(ATTACK.norm, e): level_title(ATTACK.norm, e) for e in RADII}
    places = {"clean": "clean"} | radii
    rows: dict[str, dict[str, str]] = {}
    for metric, (whole, each) in measured.items():
        place = next(p for p in places if f".{p}." in metric)
        before, _, name = metric.partition(f".{place}.")
        title = f"{before.replace('.minus.', ' less ').partition('.')[0]}, {name}"
        interval = f" [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"
        apart = ", ".join(f"{100 * one.value:.1f}" for one in each)
        shown = f"{100 * whole.value:.1f}{interval * math.isfinite(whole.low)} ({apart})"
        rows.setdefault(title, {})[place] = shown
    note = (
        "Times 100, all seeds' rows pooled, with 95% intervals (Wilson's of shares of rows, of "
        "paired differences Newcombe's; otherwise the bootstrap's by rows); in parentheses the "
        f"seeds {', '.join(map(str, seeds))} apart."
    )
    lines = tuple((title, *(row.get(p, ABSENT) for p in places)) for title, row in rows.items())
    return Table((head, *places.values()), lines, note)


def rows(n: int, seed: int = 0) -> list[Record]:
    """Held-out pictures, each with what five people would say of it."""
    rng = np.random.default_rng(seed)
    records = []
    for example in examples("captions", "test", n, seed):
        assert example.scene is not None
        captions = [caption(rng, example.scene) for _ in range(CAPTIONS)]
        record = to_record(example)
        provenance = {**record.provenance, "captions": "\n".join(captions)}
        records.append(Record(record.id, record.images, captions[0], provenance=provenance))
    return records


def short(task: str, variant: str, seed: int, factor: float) -> ConfigDict:
    """A configuration with ``factor`` times its steps, each small enough for one core."""
    name = f"{task}_{variant}"
    config = load_config(f"configs/cmai.py:{name}", [f"--config.train.seed={seed}"])
    steps = max(int(factor * config.train.steps), config.optim.warmup_steps + 1)
    config.train.update({"steps": steps, "save_every": steps, "batch_size": 16})
    config.cmcv.train.batch_size = 32
    config.mbat.steps = 2
    return config


def _counted(folder: Path, task: str, seed: int, factor: float, n: int) -> OfSystems:
    """What the systems of a seed's task come to, which is kept; models are, too."""
    own = folder / str(seed) / task
    path = own / f"counts-{n}.json"
    if not path.exists():
        with LeftOut(own / "rejected.jsonl") as left_out:
            measured = _measured(own, task, seed, factor, n, left_out)
        meta = {"rows": n, "seed": seed, "steps": factor, "attack": vars(ATTACK)}
        Report("Tasks", [tasks_section(measured, ATTACK)], meta).write(own)
        counts = {
            system: {
                place: {name: rows.tolist() for name, rows in some.items()}
                for place, some in of[task].counts().items()
            }
            for system, of in measured.items()
        }
        write_atomic(path, json.dumps(counts) + "\n")
    return {
        system: {
            place: {name: np.array(rows, float) for name, rows in some.items()}
            for place, some in places.items()
        }
        for system, places in json.loads(path.read_text()).items()
    }


def _measured(
    folder: Path, task: str, seed: int, factor: float, n: int, left_out: LeftOut
) -> dict[str, dict[str, Measured]]:
    """The systems of a task, all of CMAI first; models that an earlier run trained are taken as
    they are."""
    models = {"none": TASKS[task]}
    for name, variant in SYSTEMS.items():
        own = folder / name
        if not is_immunized(own / "model"):
            done: Any = immunize(short(task, variant, seed, factor), own, {SOURCE: read})
            done.save(own / "model")
        models[name] = str(own / "model")
    alone = folder / "alone"
    if not alone.is_dir():
        without = shutil.ignore_patterns(FILE, CHECK)
        shutil.copytree(folder / "cmai" / "model", alone, ignore=without)
    models["cmai_alone"] = str(alone)
    order = ("cmai", "cmai_alone", "fare", "none")
    asking = Asking(question="{text}", caption="describe the picture.", caption_tokens=40)
    benchmarks = {task: Benchmark("captions", rows(n, seed))}
    specs = [f"{name}={models[name]}" for name in order]
    return measure_tasks(specs, benchmarks, left_out, ATTACK, asking)
