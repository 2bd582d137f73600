"""``evaluate --shards``: verdicts by whoever works on the shards, figures from the outputs.

No picture and no text is held: of a row there is what its verdict says, and the few rows that a
report shows are read again.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected, blanked, rejection
from crossguard_jax.evals.comparison import ComparedSystem, Evaluation
from crossguard_jax.evals.evaluate import rows_apart
from crossguard_jax.evals.scoring import Scored, scored_rows
from crossguard_jax.evals.seen import learned_from, seen_rows, seen_sections
from crossguard_jax.evals.summary import Findings, JudgedSystem, origins_of, print_report, report
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io.jsonl import RowError, read_jsonl
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.runtime.manifests import read_manifest
from crossguard_jax.runtime.shards import DEADLINE, ShardJob, ShardReport, read_claim
from crossguard_jax.systems.sharded import FACTORY, kept_costs
from crossguard_jax.systems.store import store_folder

_VERDICT = tuple(Verdict.__dataclass_fields__)


def main(args: argparse.Namespace, comparison: Evaluation) -> int:
    """The verb's work over a manifest of tables; returns 1 if a row or a shard was left out, or a
    row has no answer."""
    if args.on == "array":
        args.usage_error("--on array does parts: score --shards first, then evaluate without it")
    if comparison.exports or comparison.speed_rows:
        args.usage_error("--export and --speed-rows go with --data, whose rows are at hand")
    shards, folder = read_manifest(args.shards), Path(args.out)
    judgements: dict[str, JudgedSystem] = {}
    contents: dict[tuple[str, str], str] = {}
    pictures: dict[tuple[str, str], str] = {}
    with rows_apart(folder) as (left_out, unanswered):
        for spec in comparison.systems:
            job = _job(args, spec, folder / "shards" / spec.name)
            summary = run_shards(job, shards, args.on, args.workers)
            identity, notes = read_claim(job.folder)
            costs = [*kept_costs(job)]
            print("".join(f"{spec.name}: {line}\n" for line in costs), end="")
            negative, positive = notes["words"]
            verdicts: dict[tuple[str, str], Verdict | UserError] = {}
            rows = _rows(job, summary.reports, (negative, positive), verdicts, contents, pictures)
            scored: Scored = []
            for record in left_out.accepted(rows, functools.partial(_group, spec.name)):
                verdict = verdicts[record.source, record.id]
                if isinstance(verdict, UserError):
                    unanswered.add_record(record, spec.name, verdict)
                scored.append((record.source, record, verdict))
            scores = scored_rows(scored, positive, lambda name, row: pictures[name, row.id])
            if not scores.answered.any():
                raise UserError(f"--model {spec.path}: it can score no row; see {left_out.path}")
            learned = learned_from(notes["base"], spec.path, spec.adapter or spec.path)
            judgements[spec.name] = JudgedSystem(
                scored,
                scores,
                identity["threshold"],
                (negative, positive),
                notes.get("remarks", ()),
                learned,
                store_name=notes.get("store_name", ""),
                costs=costs,
            )
    firsts = next(iter(judgements.values())).scored
    places = {(benchmark, record.id): record.provenance for benchmark, record, _ in firsts}

    def lookup(benchmark: str, id: str) -> tuple[bytes | None, str]:
        at = places[benchmark, id]
        row = int(at["row"])
        (record,) = sources.read("table", at["file"], rows=(row, row))
        if isinstance(record, Rejected):
            return None, record.reason
        record = blanked(record, args.blank)
        return record.image, record.text

    seen = {name: seen_rows(each.learned, contents) for name, each in judgements.items()}
    sections = seen_sections(seen, contents)
    tests: dict[str, list[Record]] = {}
    for benchmark, record, _ in firsts:
        tests.setdefault(benchmark, []).append(record)
    together = set().union(*seen.values())
    shown = Findings(comparison, judgements, together, origins_of(tests), {}, {}, lookup, contents)
    page = report(shown, folder, (left_out, unanswered), sections)
    return print_report(shown, (left_out, unanswered), page)


def _job(args: argparse.Namespace, system: ComparedSystem, folder: Path) -> ShardJob:
    options = {"path": system.path, "adapter": system.adapter, "dtype": args.dtype}
    options["prompt"] = system.prompt or args.prompt
    spec = {
        "load": options | {"noise_seed": args.noise_seed},
        "mesh": args.mesh,
        "store": store_folder(args.store),
        "queue": str(folder.with_suffix(".review.jsonl")),
        "batch_size": args.batch_size,
        "format": "table",
        "options": {},
        "blank": args.blank,
        "described": True,
    }
    deadline = args.deadline or DEADLINE
    return ShardJob(FACTORY, spec, str(folder), deadline=deadline, threads=args.threads)


def _rows(
    job: ShardJob,
    outcomes: Sequence[ShardReport],
    words: tuple[str, str],
    verdicts: dict[tuple[str, str], Verdict | UserError],
    contents: dict[tuple[str, str], str],
    pictures: dict[tuple[str, str], str],
) -> Iterator[Record | Rejected]:
    """The rows of all outputs as records without text and pictures; those that are of no use as
    `LeftOut` takes them. Of an id's first row it keeps verdict, or why there is none, content and
    pictures by benchmark and id."""
    for outcome in outcomes:
        path = outcome.shard.path
        if outcome.bytes < 0:
            yield Rejected(path, 0, outcome.reason)
            continue
        for _, row in read_jsonl(job.output(outcome.shard)):
            if isinstance(row, RowError):
                raise UserError(f"{job.output(outcome.shard)}: {row.reason}; remove it, run again")
            at = {"file": path, "row": str(row["row"])}
            if "benchmark" not in row:
                yield Rejected(path, row["row"], row["reason"])
                continue
            label, benchmark = row.get("true_label", ""), row["benchmark"]
            at |= {"pair": row["pair"]} if "pair" in row else {}
            record = Record(row["id"], (), "", label, row["category"], benchmark, at)
            if label not in words:
                reason = f"label {short(repr(label))} is not {' or '.join(map(repr, words))}"
                yield rejection(record, f"{reason}; mend it")
                continue
            verdict = UserError(row["reason"]) if "reason" in row else _verdict(row)
            verdicts.setdefault((benchmark, record.id), verdict)
            contents.setdefault((benchmark, record.id), row["content"])
            pictures.setdefault((benchmark, record.id), row["picture"])
            yield record


def _group(system: str, record: Record) -> str:
    return f"{system}/{record.source}"


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(**{name: row[name] for name in _VERDICT if name in row})
