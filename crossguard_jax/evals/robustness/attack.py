"""``crossguard attack``: an attack suite against models, and the report."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossguard_jax.attacks import registry
from crossguard_jax.attacks.registry import REGISTRY, ROWS, WHOLE
from crossguard_jax.cmai.folders import is_immunized, load_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import LeftOut, Record
from crossguard_jax.evals.comparison import parse_model
from crossguard_jax.evals.evaluate import read_benchmarks
from crossguard_jax.evals.robustness import budget
from crossguard_jax.evals.robustness.certified import certificate_section, certified
from crossguard_jax.evals.robustness.consistency import consistency_section
from crossguard_jax.evals.robustness.detection import detection_section
from crossguard_jax.evals.robustness.fixed import check_apart, validation_half
from crossguard_jax.evals.robustness.pictures import pictures_section
from crossguard_jax.evals.robustness.probe import STEPS, Probe, probe
from crossguard_jax.evals.robustness.run_all import run_all
from crossguard_jax.evals.robustness.saved import check_saving
from crossguard_jax.evals.robustness.systems import NO_PICTURE, attackable, configured
from crossguard_jax.evals.scoring import judged_rows, verdict_lines
from crossguard_jax.evals.summary import left_out_sections, print_summary
from crossguard_jax.io import jsonl
from crossguard_jax.report.blocks import Bullets, Section
from crossguard_jax.report.report import Report
from crossguard_jax.report.text import quoted
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import default_dtype, own_mesh
from crossguard_jax.systems.store import VerdictStore, store_folder


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints its budget, the worst case by radius, what was left out, and the
    report's path.

    Every cell of the suite is kept in ``OUT/cells``: killed and called again, it goes on.

    Returns:
        1 if a row was left out, otherwise 0. Rows without a picture are left out too, but there is
        nothing wrong with them.

    Raises:
        UserError: models that answer differently, rows or attacks that cannot be used.
    """
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    if args.certify < 0:
        raise UserError(f"--certify {args.certify}: a number of rows")
    config, without = suite_config(args.config.attack, bool(args.surrogate), args.attack)
    with LeftOut(folder / "rejected.jsonl") as left_out:
        tests = read_benchmarks(args.data, left_out)
        rows = [record for benchmark in tests.values() for record in benchmark]
        loading = load_options(args)
        systems = load_systems(args.model, **loading)
        (main_name, first), *_ = systems.items()
        can_be = attackable(rows, first.task.labels, left_out)
        validation, can_be = validating(args, config, first, can_be, left_out)
        records = drawn(can_be, args.limit, config.seed)
    attacks, n = configured(config), len(systems)
    if args.save and any(a.route in (ROWS, WHOLE) for a in attacks.values()):
        check_saving(config, folder / "cells")
    done = budget.left_there(folder / "cells")
    clean = len(validation.records)
    print(budget.line(config, [*attacks.values()], first, records, n, done, clean), flush=True)
    for name, system in systems.items():
        _clean_verdicts(args, system, name, records, folder / f"{name}.verdicts.jsonl", left_out)
    other = None
    if args.surrogate:
        other = load_system(args.surrogate, first.task.labels, **loading)
    made = run_all(
        *(config, systems, records, folder / "cells", other),
        keep=bool(args.save),
        validation=validation.records,
    )
    sections = made.sections(records, validation.how)
    sections.append(Section("What was attacked", (Bullets(_facts(records, rows, first, without)),)))
    if made.pictures:
        probes = _probes(config, systems, records, folder / "cells")
        if probes[main_name].cut is not None:
            sections.append(
                detection_section(main_name, first, probes[main_name], config.batch_size)
            )
        checked = {name: each for name, each in probes.items() if each.cut is not None}
        if len(checked) > 1:
            sections.append(consistency_section(checked))
        sections.append(pictures_section(main_name, first, probes[main_name]))
    if args.certify:
        some = certified(
            first,
            records[: args.certify],
            config.certificate,
            folder / "cells" / main_name / "certificate",
            config.seed,
        )
        sections.append(certificate_section(main_name, some))
    options = ("model", "data", "validation", "surrogate", "limit", "certify", "prompt")
    meta = {name: getattr(args, name) for name in options}
    sections += left_out_sections(left_out)
    report = Report("Robustness", sections, meta | {"attack": config.to_dict()})
    page = processes.by_first(lambda: report.write(folder))
    if args.save:
        for line in made.save(Path(args.save), systems, records):
            print(line)
    made.tell()
    return print_summary(left_out, page, faultless=(NO_PICTURE,))


def suite_config(
    config: Any, surrogate: bool, names: Sequence[str] | None = None
) -> tuple[Any, list[str]]:
    """The suite without what it lacks a model for, and what that is.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        surrogate: whether transfer attacks have a model.
        names: attacks to run in place of the configuration's, each as `registry.parse` takes it;
            "all" is all of the registry, those that are named beside it as they are named. They
            run alone, so that they can be compared.

    Raises:
        UserError: a name or an option that there is none of, or one attack twice.
    """
    config = config.copy_and_resolve_references()
    if names:
        own = [registry.parse(name) for name in names if name != "all"]
        for name, n in Counter(name for name, _ in own).items():
            if n > 1:
                raise UserError(f"--attack {name}: given {n} times; give one, and run them apart")
        specs: dict[str, Any] = dict.fromkeys(REGISTRY if "all" in names else (), {})
        for name, values in [*((name, {}) for name in specs), *own]:
            specs[name] = {**config.attacks.get(name, {}), **values}
        with config.unlocked():
            config.alone, config.attacks = True, specs
    without = [name for name, a in configured(config).items() if a.transfer and not surrogate]
    with config.unlocked():
        for name in without:
            del config.attacks[name]
    if not config.attacks:
        raise UserError("--attack: none is left without a --surrogate to make it on; give one")
    return config, without


@dataclass(frozen=True)
class Validation:
    """Clean rows that a guard's cuts are chosen by.

    Attributes:
        records: the rows; none where nothing is to be cut.
        how: which ones they are, for a reader.
    """

    records: Sequence[Record] = ()
    how: str = ""


def validating(
    args: argparse.Namespace,
    config: Any,
    first: Immunized,
    records: Sequence[Record],
    left_out: LeftOut,
) -> tuple[Validation, list[Record]]:
    """The rows that cuts are chosen by, and those that are left to attack.

    Args:
        args: the command line.
        config: ``attack`` of ``configs/cmai.py``.
        first: the main system.
        records: all that can be attacked.
        left_out: takes rows that cannot be used.

    Raises:
        UserError: the two have a row in common, or rows are given that nothing is chosen by.
    """
    if not config.fpr or not is_guard(first):
        if args.validation:
            raise UserError(
                "--validation: nothing is chosen by it; attack.fpr names no rate, or the main "
                "model is no guard"
            )
        return Validation(), list(records)
    if not args.validation:
        half, rest = validation_half(records, config.seed)
        how = (
            f"{len(half):,} of the {len(records):,} rows that can be attacked, drawn at random by "
            f"seed {config.seed} and left out of the attack"
        )
        return Validation(half, how), rest
    tests = read_benchmarks(args.validation, left_out, tested=False)
    rows = [record for benchmark in tests.values() for record in benchmark]
    rows = attackable(rows, first.task.labels, left_out)
    check_apart(rows, records)
    return Validation(rows, f"{len(rows):,} rows of {', '.join(args.validation)}"), list(records)


def drawn(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """The rows, or ``limit`` of them at random, in their order.

    Raises:
        UserError: a limit of fewer than two rows, or fewer than two rows.
    """
    if limit is not None and limit < 2:
        raise UserError(f"--limit {limit}: two rows at least")
    if len(records) < 2:
        raise UserError(f"--data: {len(records)} row(s) that can be attacked; give two")
    if limit is None or limit >= len(records):
        return list(records)
    chosen = np.random.default_rng(seed).choice(len(records), limit, replace=False)
    return [records[i] for i in np.sort(chosen)]


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `load_immunized` that the command line gives.

    Without ``--remat`` it is "names": an attack takes gradients through the whole model, and all
    that a forward pass makes is more than a chip holds.
    """
    options = {name: getattr(args, name) for name in ("prompt", "noise_seed")}
    options |= {"mesh": own_mesh(args.mesh), "remat": args.remat or "names"}
    return options | {"dtype": default_dtype() if args.dtype == "auto" else args.dtype}


def load_systems(specs: Sequence[str], **options: Any) -> dict[str, Immunized]:
    """Models by dotted name, of ``[NAME=]FOLDER``, the main one first.

    A model that was not immunized is held to the main one's answers.

    Raises:
        UserError: two of one name, an adapter, other answers than the main one's, or whatever is
            wrong with a folder.
    """
    systems: dict[str, Immunized] = {}
    labels: tuple[str, ...] = ()
    for spec in specs:
        name, path, adapter = parse_model(spec)
        if adapter:
            raise UserError(f"--model {spec}: attack takes whole folders; export {adapter} first")
        if name in systems:
            raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
        systems[name] = load_system(path, labels, **options)
        labels = labels or systems[name].task.labels
        if systems[name].task.labels != labels:
            raise UserError(
                f"--model {spec}: answers {', '.join(systems[name].task.labels[:5])}, the main one "
                f"{', '.join(labels[:5])}; attack models of one task"
            )
    return systems


def load_system(path: str, labels: Sequence[str], **options: Any) -> Immunized:
    """One model; ``labels`` are for one that was not immunized, ``options`` `load_immunized`'s."""
    system = load_immunized(path, **options)
    return system if is_immunized(path) else Immunized.of(system.task.guard, labels)


def _clean_verdicts(
    args: argparse.Namespace,
    system: Immunized,
    name: str,
    records: Sequence[Record],
    path: Path,
    left_out: LeftOut,
) -> None:
    """Writes what the system says of the rows before anybody attacks them, as ``score`` would."""
    if not is_guard(system):
        return
    store = VerdictStore(store_folder(args.store), system)
    by_source: dict[str, list[Record]] = {}
    for record in records:
        by_source.setdefault(record.source, []).append(record)
    lines = verdict_lines(judged_rows(store, by_source, name, left_out=left_out))
    processes.by_first(lambda: jsonl.write_atomic(path, lines))


def is_guard(system: Immunized) -> bool:
    """Whether a model answers with its prompt's two words, the second of which blocks."""
    words = system.settings.prompt
    return system.task.labels == (words.negative, words.positive)


def _steps(config: Any) -> int:
    """As many as the suite's longest search by gradients, so that the two can be compared."""
    attacks = configured(config).values()
    steps = (a.steps for a in attacks if a.route == ROWS and a.gradient)
    return max(steps, default=STEPS)


def _probes(
    config: Any, systems: Mapping[str, Immunized], records: Sequence[Record], cells: Path
) -> dict[str, Probe]:
    """What the check of the first system sees of attacks, and those of others that have one."""
    (main_name, _), *_ = systems.items()
    return {
        name: probe(system, records, config, cells / name / "probe", _steps(config))
        for name, system in systems.items()
        if name == main_name or system.task.reader is not None
    }


def _facts(
    records: Sequence[Record], rows: Sequence[Record], first: Immunized, without: Sequence[str]
) -> tuple[str, ...]:
    labels = first.task.labels
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    facts = [
        f"{len(records):,} of {len(rows):,} rows: those that can be attacked, drawn at random "
        "where there were more than asked for.",
        f"The answers: {quoted(', '.join(labels[:5]))}{more}.",
    ]
    if without:
        facts.append(
            f"Left out, for want of a model to make them on (`--surrogate`): {', '.join(without)}."
        )
    if first.task.reader is None:
        facts.append("The main model has no consistency check, so none is measured.")
    return tuple(facts)
