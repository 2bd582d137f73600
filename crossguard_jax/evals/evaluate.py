"""``crossguard evaluate``: guards over labelled data, and the report."""

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import LeftOut, Record, blanked
from crossguard_jax.data.sources.catalogue import tested_split
from crossguard_jax.data.sources.reading import SourceRows, subset_of
from crossguard_jax.evals.benchmarks import slug
from crossguard_jax.evals.comparison import (
    ComparedData,
    ComparedSystem,
    Evaluation,
    comparison_of,
    told_apart,
)
from crossguard_jax.evals.digests import Digests
from crossguard_jax.evals.interchange import write_guardbench, write_inspect
from crossguard_jax.evals.kept import Deferred, deferred
from crossguard_jax.evals.scoring import (
    Unanswered,
    judged_rows,
    scored_rows,
)
from crossguard_jax.evals.seen import learned_from, seen_rows, seen_sections
from crossguard_jax.evals.speed import measured
from crossguard_jax.evals.summary import (
    Findings,
    JudgedSystem,
    data_sections,
    in_common,
    origins_of,
    print_report,
    report,
)
from crossguard_jax.evals.system_pages import Explained
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.runtime import processes
from crossguard_jax.runtime.mesh import default_dtype, inference_mesh
from crossguard_jax.systems import kinds
from crossguard_jax.systems.load import load
from crossguard_jax.systems.store import VerdictStore, store_folder, store_name
from crossguard_jax.systems.system import costs_of, notes_of


def main(args: argparse.Namespace) -> int:
    """The verb's work; prints the overall figures, what was left out, and the report's path.

    Returns:
        1 if a row was left out or has no answer, or a system failed; otherwise 0.
    """
    _check(args)
    comparison = comparison_of(args)
    if args.shards is not None:
        from crossguard_jax.evals import sharded

        return sharded.main(args, comparison)
    folder, digests = Path(args.out), Digests()
    readings: list[SourceRows] = []
    with rows_apart(folder) as (left_out, unanswered):
        whole, titles = _read(comparison, left_out, readings)
        tests = {k: [blanked(r, args.blank) for r in rows] for k, rows in whole.items()}
        # A blanked picture is one for all, and tells no rows apart.
        pictures = {(k, r.id): digests.picture(r) for k, rows in whole.items() for r in rows}
        judgements, failed = _judge(
            args, comparison, tests, digests, pictures, left_out, unanswered
        )
    texts = {(name, r.id): (r.image, r.text) for name, rows in tests.items() for r in rows}
    contents = {(name, r.id): digests.content(r) for name, rows in whole.items() for r in rows}

    def write() -> int:
        seen = {name: seen_rows(each.learned, contents) for name, each in judgements.items()}
        sections = [*seen_sections(seen, contents), *data_sections(readings)]
        shown = Findings(
            comparison,
            judgements,
            set().union(*seen.values()),
            origins_of(tests),
            titles,
            failed,
            lambda benchmark, id: texts[benchmark, id],
            contents,
            _explained(args, comparison, judgements),
        )
        page = report(shown, folder, (left_out, unanswered), sections)
        _export(comparison, tests, judgements, folder)
        return print_report(shown, (left_out, unanswered), page)

    return processes.by_first(write)


def _check(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        args.usage_error(f"--threshold {args.threshold} is no probability; give 0 to 1")
    if args.speed_rows is not None and args.speed_rows < 0:
        args.usage_error(f"--speed-rows {args.speed_rows}: give 0 or more")
    if args.config is None and (args.data is None) == (args.shards is None):
        args.usage_error("give --data or --shards")
    if args.why is not None and (args.shards is not None or processes.count() > 1):
        args.usage_error("--why goes without --shards, and with one process")
    if args.config is not None and args.shards is not None:
        args.usage_error("--shards goes without --config; give --model")


@contextlib.contextmanager
def rows_apart(folder: Path) -> Iterator[tuple[LeftOut, Unanswered]]:
    """The rows that a run leaves out, and those without an answer, each with a file."""
    with (
        LeftOut(folder / "rejected.jsonl") as left_out,
        Unanswered(folder / "no_answer.jsonl") as unanswered,
    ):
        yield left_out, unanswered


def _read(
    comparison: Evaluation, left_out: LeftOut, readings: list[SourceRows]
) -> tuple[dict[str, list[Record]], dict[str, str]]:
    """The rows by benchmark, and the benchmarks' titles by dotted name."""
    tests: dict[str, list[Record]] = {}
    titles: dict[str, str] = {}
    for each in comparison.data:
        # What is decoded here would be decoded for every system whose verdicts are kept. A damaged
        # picture is a row that systems give no answer to, and that stays in the denominator.
        rows = read_benchmarks(
            [each.spec],
            left_out,
            comparison.missing_pictures,
            readings,
            at_least_one=False,
            check_pictures=False,
            limit=each.limit if not each.per_category else 0,
            seed=comparison.seed,
        )
        for name, records in rows.items():
            tests.setdefault(name, []).extend(each.drawn(records, comparison.seed))
            if each.title:
                subset = subset_of(records[0])
                titles[slug(name)] = f"{each.title} ({subset})" if subset else each.title
    if not tests:
        specs = ", ".join(each.spec for each in comparison.data)
        raise UserError(f"{specs}: no good row; see {left_out.path}")
    return tests, titles


def _judge(
    args: argparse.Namespace,
    comparison: Evaluation,
    tests: Mapping[str, Sequence[Record]],
    digests: Digests,
    pictures: Mapping[tuple[str, str], str],
    left_out: LeftOut,
    unanswered: Unanswered,
) -> tuple[dict[str, JudgedSystem], dict[str, str]]:
    """What every system says of every row, and why those that failed did.

    Verdicts are kept as they come, so that a system that fails costs its own row of the table.
    """
    judgements: dict[str, JudgedSystem] = {}
    failed: dict[str, str] = {}
    for spec in comparison.systems:
        try:
            judgements[spec.name] = _judged(
                args, comparison, spec, tests, digests, pictures, left_out, unanswered
            )
        except UserError as error:
            if spec.name == comparison.named or len(comparison.systems) == 1:
                raise
            failed[spec.name] = str(error)
            print(f"{spec.name}: has no row in the table: {error}")
    return judgements, failed


def _judged(
    args: argparse.Namespace,
    comparison: Evaluation,
    spec: ComparedSystem,
    tests: Mapping[str, Sequence[Record]],
    digests: Digests,
    pictures: Mapping[tuple[str, str], str],
    left_out: LeftOut,
    unanswered: Unanswered,
) -> JudgedSystem:
    folder, what = store_folder(args.store), _loading(args, spec)
    system, facts = deferred(folder, what, lambda: load(**what, mesh=inference_mesh(args.mesh)))
    store = VerdictStore(folder, system, key=digests.request, facts=facts.identity)
    scored = judged_rows(store, tests, spec.name, args.batch_size, left_out, unanswered)
    at_work = system.loaded or system if isinstance(system, Deferred) else system
    if processes.is_first():
        print("".join(f"{spec.name}: {line}\n" for line in notes_of(at_work)), end="")
    positive = system.settings.prompt.positive
    scores = scored_rows(scored, positive, lambda name, record: pictures[name, record.id])
    if not scores.answered.any():
        why = unanswered if len(scores) else left_out
        raise UserError(f"--model {spec.path}: it can score no row; see {why.path}")
    judgement = JudgedSystem(
        scored,
        scores,
        facts.threshold,
        (system.settings.prompt.negative, positive),
        facts.remarks,
        learned_from(facts.folder, spec.path, spec.adapter or spec.path),
        store_name=store_name(facts.identity),
        costs=costs_of(at_work),
    )
    if not comparison.speed_rows:
        return judgement
    records = [record for _, record, verdict in scored if isinstance(verdict, Verdict)]
    some = ComparedData("", limit=comparison.speed_rows).drawn(records, comparison.seed)
    path = store.path.with_suffix(".speed.json") if store.path else None
    return replace(judgement, speed=measured(system, some, args.batch_size, path))


def _loading(args: argparse.Namespace, spec: ComparedSystem) -> dict[str, Any]:
    """What a system is loaded by; JSON values."""
    dtype = default_dtype() if args.dtype == "auto" else args.dtype
    options = {"prompt": spec.prompt or args.prompt, "noise_seed": args.noise_seed}
    return {"path": spec.path, "adapter": spec.adapter, "dtype": dtype, **options}


def _explained(
    args: argparse.Namespace, comparison: Evaluation, judgements: Mapping[str, JudgedSystem]
) -> Explained | None:
    """What explains the rows that the named system's page lists; None without ``--why``."""
    if args.why is None:
        return None
    from crossguard_jax.evals.listed_why import ExplainedRows

    (spec,) = (each for each in comparison.systems if each.name == comparison.named)
    system = load(**_loading(args, spec), mesh=inference_mesh(args.mesh))
    return ExplainedRows(system, judgements[spec.name].scored, args.why, args.batch_size)


def _export(
    comparison: Evaluation,
    tests: Mapping[str, Sequence[Record]],
    judgements: Mapping[str, JudgedSystem],
    folder: Path,
) -> None:
    """Writes rows and verdicts for the other tools that were named."""
    systems = in_common({name: each.scores for name, each in judgements.items()})
    keys = set(next(iter(systems.values())).keys())
    rows = {name: [r for r in records if (name, r.id) in keys] for name, records in tests.items()}
    for name in comparison.exports:
        {"inspect": write_inspect, "guardbench": write_guardbench}[name](rows, systems, folder)
        print(f"for {name}: {folder / name}")


def read_benchmarks(
    specs: Sequence[str],
    left_out: LeftOut,
    missing_pictures: str | None = None,
    readings: list[SourceRows] | None = None,
    at_least_one: bool = True,
    check_pictures: bool = True,
    limit: int = 0,
    seed: int = 0,
    tested: bool = True,
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
        at_least_one: refuse to go on without any good row.
        check_pictures: decode each picture, so that a row with a damaged one is left out.
        limit: good rows of each spec at most, in the order that the seed draws, where its reader
            draws one; 0 is all.
        seed: of that order.
        tested: where no split is named, read the one that systems are tested on
            (`catalogue.tested_split`), not the one that they learn from.

    Raises:
        UserError: a spec that is neither, or no good row at all.
    """
    tests: dict[str, list[Record]] = {}
    for spec in told_apart(specs):
        given, rest = kinds.named(spec)
        reader, path, split = _parse_data(rest)
        split = split or (tested_split(reader, path) if tested else "")
        options: dict[str, Any] = {"split": split} if split else {}
        if missing_pictures and sources.has_option(reader, "missing_pictures"):
            options["missing_pictures"] = missing_pictures
        if sources.has_option(reader, "check_pictures"):
            options["check_pictures"] = check_pictures
        if limit and sources.has_option(reader, "seed"):
            options["seed"] = seed

        def benchmark(record: Record, given: str = given, reader: str = reader) -> str:
            return "_".join(filter(None, [given or record.source or reader, subset_of(record)]))

        rows = sources.read(reader, path, **options)
        for record in itertools.islice(left_out.accepted(rows, benchmark), limit or None):
            tests.setdefault(benchmark(record), []).append(record)
        if processes.is_first():
            print("".join(f"{line}\n" for line in rows.lines()), end="")
        if readings is not None:
            readings.append(rows)
    if not tests and at_least_one:
        raise UserError(f"{', '.join(specs)}: no good row; see {left_out.path}")
    return tests


def _parse_data(spec: str) -> tuple[str, str, str]:
    reader, colon, rest = spec.partition(":")
    if not colon:
        return "table", spec, ""
    path, _, split = rest.partition(":")
    return reader, path, split
