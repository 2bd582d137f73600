"""``crossguard evaluate``: guards over labelled data, and the report."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import LeftOut, Record, blanked
from crossguard_jax.data.sources.reading import SourceRows, subset_of
from crossguard_jax.evals.benchmarks import TRAINED_ON, ScoredRows, slug
from crossguard_jax.evals.examples import Lookup
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.scoring import (
    Scored,
    branch_counts,
    judged_rows,
    scored_rows,
    write_verdicts,
)
from crossguard_jax.evals.seen import apart, learned_from, seen_rows, seen_sections
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.report.blocks import Bullets, Section
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import Table
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import inference_mesh
from crossguard_jax.systems import kinds
from crossguard_jax.systems.load import load
from crossguard_jax.systems.store import VerdictStore, store_folder
from crossguard_jax.systems.system import notes_of
from crossguard_jax.systems.tally import BRANCHES


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints the overall figures, what was left out, and the report's path.

    Returns:
        1 if a row was left out, otherwise 0.
    """
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        args.usage_error(f"--threshold {args.threshold} is no probability; give 0 to 1")
    if (args.data is None) == (args.shards is None):
        args.usage_error("give --data or --shards")
    folder = Path(args.out)
    if args.shards is not None:
        from crossguard_jax.evals import sharded

        return sharded.main(args)
    with LeftOut(folder / "rejected.jsonl") as left_out:
        readings: list[SourceRows] = []
        whole = read_benchmarks(args.data, left_out, args.missing_pictures, readings)
        tests = {k: [blanked(r, args.blank) for r in rows] for k, rows in whole.items()}
        judgements, systems, own, learned = _score(args, tests, left_out)
    for name, scored in judgements.items():
        write_verdicts(scored, folder / f"{name}.verdicts.jsonl")
    texts = {(name, r.id): (r.image, r.text) for name, rows in tests.items() for r in rows}

    def write() -> int:
        contents = {
            (name, r.id): content_hash(r.text, r.images)
            for name, rows in whole.items()
            for r in rows
        }
        seen = {name: seen_rows(words, contents) for name, words in learned.items()}
        sections = [*seen_sections(seen, contents), *data_sections(readings)]
        split = apart(systems, set().union(*seen.values()))
        return report(args, left_out, judgements, split, own, sections, lambda b, i: texts[b, i])

    return processes.by_first(write)


def report(
    args: argparse.Namespace,
    left_out: LeftOut,
    judgements: Mapping[str, Scored],
    systems: Mapping[str, ScoredRows],
    own: Mapping[str, float],
    more: Sequence[Section],
    lookup: Lookup,
) -> int:
    """Report and figures; returns the exit code.

    Args:
        args: the verb's.
        left_out: the rows that it is not about.
        judgements: every system's verdicts.
        systems: their scores of the rows that all can score, with those apart that one was trained
            on (`seen.apart`).
        own: their own thresholds.
        more: sections about rows and sets.
        lookup: gives a row's picture and text, by its benchmark as it was read, and its id.
    """
    folder = Path(args.out)
    threshold = _threshold(args.threshold, own)
    judged = Judged(systems, threshold)
    meta = {"models": args.model, "data": args.data or args.shards, "threshold": threshold}
    sections = guard_sections(judged, lambda b, i: lookup(b.removesuffix(TRAINED_ON), i))
    sections += [*policy_sections(judgements), *more, *left_out_sections(left_out)]
    page = Report("Guards compared", sections, meta).write(folder)
    for name, figures in judged.results.items():
        for measure in ("asr", "fpr", "accuracy", "auroc"):
            if (figure := figures.get(f"all.{measure}")) is not None and figure.n:
                interval = f"[{figure.low:.4f}, {figure.high:.4f}]"
                print(f"{name} {measure} {figure.value:.4f} {interval} n={figure.n}")
    return print_summary(left_out, page)


def _score(
    args: argparse.Namespace, tests: Mapping[str, Sequence[Record]], left_out: LeftOut
) -> tuple[dict[str, Scored], dict[str, ScoredRows], dict[str, float], dict[str, set[str]]]:
    """Every model's verdicts, its scores of the rows that all can score, its own threshold, and the
    contents and the names of what it was trained on."""
    learned: dict[str, set[str]] = {}
    judgements: dict[str, Scored] = {}
    systems: dict[str, ScoredRows] = {}
    thresholds: dict[str, float] = {}
    for spec in args.model:
        name, path, adapter = parse_model(spec)
        if name in systems:
            raise UserError(f"--model: two systems are called {name!r}; write NAME=FOLDER")
        options = {"prompt": args.prompt, "noise_seed": args.noise_seed}
        system = load(path, adapter, args.dtype, mesh=inference_mesh(args.mesh), **options)
        learned[name] = learned_from(system.folder, path, adapter or path)
        store = VerdictStore(store_folder(args.store), system)
        judgements[name] = judged_rows(store, tests, name, args.batch_size, left_out)
        if processes.is_first():
            print("".join(f"{name}: {line}\n" for line in notes_of(system)), end="")
        scores = scored_rows(judgements[name], system.settings.prompt.positive)
        keys = set(scores.keys())
        if not keys:
            raise UserError(f"--model {spec}: it can score no row; see {left_out.path}")
        tests = {
            benchmark: [record for record in rows if (benchmark, record.id) in keys]
            for benchmark, rows in tests.items()
        }
        systems[name], thresholds[name] = scores, system.settings.threshold
    return judgements, in_common(systems, keys), thresholds, learned


def in_common(
    systems: Mapping[str, ScoredRows], keys: Collection[tuple[str, str]]
) -> dict[str, ScoredRows]:
    """The systems' scores of the rows with these keys."""
    return {
        name: scores.take(np.array([key in keys for key in scores.keys()]))
        for name, scores in systems.items()
    }


def _threshold(given: float | None, own: Mapping[str, float]) -> float:
    """What all systems are judged at: what was given, or else the first one's own.

    Prints which one it is where the systems' folders differ and none was given.
    """
    if given is not None:
        return given
    main, threshold = next(iter(own.items()))
    if others := [f"{name} has {value:g}" for name, value in own.items() if value != threshold]:
        print(
            f"threshold {threshold:g}, {main}'s own, for all ({', '.join(others)}); "
            "--threshold sets another"
        )
    return threshold


def policy_sections(judgements: Mapping[str, Scored]) -> list[Section]:
    """What the systems' policies did, by benchmark and label; nothing where none did anything."""
    rows = []
    for name, scored in judgements.items():
        for (benchmark, label), counts in branch_counts(scored).items():
            total = counts.total()
            rows += [
                (name, benchmark, label, BRANCHES[branch], f"{n:,} of {total:,}")
                for branch, n in sorted(counts.items())
                if branch != "accept"
            ]
    if not rows:
        return []
    table = Table(("System", "Benchmark", "Label", "What", "Rows"), tuple(rows), "")
    return [Section("What the policy did", (table,))]


def data_sections(readings: Sequence[SourceRows]) -> list[Section]:
    """What was read of published sets, and their licences; nothing where there are none."""
    lines = tuple(line for reading in readings for line in reading.lines())
    return [Section("The data sets", (Bullets(lines),))] if lines else []


def left_out_sections(left_out: LeftOut) -> list[Section]:
    """What a report says of the rows that it is not about; nothing where there are none."""
    if not left_out.total:
        return []
    rows = tuple((reason, file, f"{n:,}") for (file, reason), n in left_out.counts.most_common())
    table = Table(("Why", "of", "rows"), rows, f"Each by itself is in {left_out.path.name}.")
    return [Section("Rows left out", (table,))]


def print_summary(left_out: LeftOut, page: Path, faultless: Collection[str] = ()) -> int:
    """Prints what was left out and where the report is; returns the exit code.

    Args:
        left_out: the rows.
        page: the report.
        faultless: reasons, by kind, that are no fault of a row's.
    """
    code = print_left_out(left_out, faultless)
    print(f"report: {page}")
    return code


def print_left_out(left_out: LeftOut, faultless: Collection[str] = ()) -> int:
    """Prints what was left out; returns the exit code. ``faultless`` is as in `print_summary`."""
    for line in left_out.lines():
        print(line)
    faults = sum(n for (_, reason), n in left_out.counts.items() if reason not in faultless)
    if faults:
        print("exit code 1, because rows were left out")
    return int(faults > 0)


def parse_model(spec: str) -> tuple[str, str, str | None]:
    """``[NAME=]FOLDER[+ADAPTER]`` to a dotted name, a folder (or ``KIND:WHAT``, see
    `systems.kinds`) and an adapter folder."""
    name, equals, rest = spec.partition("=")
    if not equals:
        name, rest = kinds.name_of(spec.partition("+")[0]), spec
    path, _, adapter = rest.partition("+")
    return slug(name), path, adapter or None


def read_benchmarks(
    specs: Sequence[str],
    left_out: LeftOut,
    missing_pictures: str | None = None,
    readings: list[SourceRows] | None = None,
) -> dict[str, list[Record]]:
    """Labelled records by benchmark; prints what is to be said of the sets they are from.

    Subsets of a set that have denominators of their own are benchmarks of their own.

    Args:
        specs: ``[NAME=]READER:PATH[:SPLIT]`` with a reader of `data.sources`, or ``FILE.jsonl``,
            whose rows are grouped by their ``source`` field.
        left_out: takes the rows that could not be read, and those of an id that an earlier row of
            the same benchmark has.
        missing_pictures: what becomes of rows without their pictures, for the readers that can
            keep them (`data.sources.downloads.MISSING_PICTURES`).
        readings: takes what the rows were counted with.

    Raises:
        UserError: a spec that is neither, or no good row at all.
    """
    tests: dict[str, list[Record]] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        reader, path, split = _parse_data(rest if equals else spec)
        options = {"split": split} if split else {}
        if missing_pictures and sources.has_option(reader, "missing_pictures"):
            options["missing_pictures"] = missing_pictures
        given = name if equals else ""

        def benchmark(record: Record, given: str = given, reader: str = reader) -> str:
            return "_".join(filter(None, [given or record.source or reader, subset_of(record)]))

        rows = sources.read(reader, path, **options)
        for record in left_out.accepted(rows, benchmark):
            tests.setdefault(benchmark(record), []).append(record)
        if processes.is_first():
            print("".join(f"{line}\n" for line in rows.lines()), end="")
        if readings is not None:
            readings.append(rows)
    if not tests:
        raise UserError(f"{', '.join(specs)}: no good row; see {left_out.path}")
    return tests


def _parse_data(spec: str) -> tuple[str, str, str]:
    reader, colon, rest = spec.partition(":")
    if not colon:
        return "table", spec, ""
    path, _, split = rest.partition(":")
    return reader, path, split
